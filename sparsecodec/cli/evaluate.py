"""``sparsecodec eval``."""

from __future__ import annotations

import argparse
import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from sparsecodec.cli import evaluate_clips
from sparsecodec.cli.encoders import effort
from sparsecodec.cli.options import (
    add_command,
    add_compute,
    add_json,
    add_prefix,
    check_parent,
    compute_options,
    positive,
    print_json,
    quality,
    usual_stream,
    write_json,
)
from sparsecodec.data import list_images
from sparsecodec.errors import UsageError
from sparsecodec.info import environment
from sparsecodec.metrics import ANCHORS, CLIP_ANCHORS, evaluate
from sparsecodec.quant import trained_numbers
from sparsecodec.runtime import CompiledCodec, compile_codec
from sparsecodec.runtime.adapters import ScalableEVCCodec
from sparsecodec.runtime.adapters.compressai import CompressAICodec
from sparsecodec.zoo import load

QUALITIES = (0.0, 25.0, 50.0, 75.0, 100.0)


def add_to(subparsers) -> None:
    parser = add_command(subparsers, "eval", "rate and quality of a codec over a folder, on real bytes")
    parser.add_argument(
        "model", help=f"shipped name or path; or Pillow's {', '.join(ANCHORS)}; of clips {', '.join(CLIP_ANCHORS)}"
    )
    parser.add_argument("folder", help="of pictures, of clips, of folders of a clip's pictures; or a clip")
    parser.add_argument(
        "-q", "--qualities", type=_qualities, help="comma-separated, for clips qps (default: from small to good)"
    )
    parser.add_argument("-o", "--output", help="write the result to this file too")
    parser.add_argument(
        "--per-picture", action="store_true", help="keep the figures of each picture, the bits of each frame"
    )
    parser.add_argument("--frames", type=positive, help="of each clip (default: all)")
    add_prefix(parser)
    add_compute(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    if arguments.output:
        check_parent(arguments.output)
    if evaluate_clips.holds_clips(arguments.folder, arguments.model):
        if arguments.prefix is not None:
            raise UsageError(f"--prefix is for pictures, {arguments.folder} holds clips")
        return evaluate_clips.run(arguments)
    if arguments.frames is not None:
        raise UsageError(f"--frames is for clips, {arguments.folder} holds none")
    pictures = list_images(arguments.folder)
    options = compute_options(arguments)
    machine = environment()
    anchor = ANCHORS.get(arguments.model)
    extra: dict[str, Any] = {"device": machine["cpu"]}
    if anchor is not None:
        codec, qualities = anchor, arguments.qualities or anchor.curve
    else:
        model = load(arguments.model)
        stream = usual_stream(model)
        codec = compile_codec(model, stream=stream, **options)
        qualities = arguments.qualities or _usual_qualities(codec)
        on_gpu = codec.device.type == "cuda"
        extra = {
            "device": torch.cuda.get_device_name(codec.device) if on_gpu else machine["cpu"],
            "stream": stream,
            "dtype": str(codec.dtype).removeprefix("torch."),
            "mac_per_pixel": codec.report.macs,
            "parameters": trained_numbers(model),
        }
        if isinstance(codec, ScalableEVCCodec):
            extra["prefix"] = arguments.prefix
    name = Path(arguments.model).name
    progress = partial(tqdm, desc=name, unit="picture")
    result = evaluate(codec, pictures, qualities, name, progress, **effort(codec, arguments.prefix))
    if not arguments.per_picture:
        del result["per_picture"]
    result |= {**extra, "environment": machine}
    if arguments.output:
        write_json(arguments.output, result)
    if arguments.json:
        print_json(result)
    else:
        _print_table(result)


def _usual_qualities(codec: CompiledCodec) -> tuple[float | None, ...]:
    """None alone for codecs of one rate, which take no quality."""
    return (None,) if isinstance(codec, CompressAICodec) else QUALITIES


def _print_table(result: dict[str, Any]) -> None:
    results = result["results"]
    print(f"{result['name']}: {result['description']}; {result['device']}")
    print(" quality      bpp  PSNR dB  MS-SSIM  enc ms  dec ms")
    for row, level in enumerate(result["qualities"]):
        ms_ssim = results["ms-ssim-rgb"][row]
        print(
            f"{'-' if level is None else format(level, 'g'):>8} {results['bpp_file'][row]:8.4f}"
            f" {results['psnr-rgb'][row]:8.3f} {'-' if ms_ssim is None else format(ms_ssim, '.5f'):>8}"
            f" {results['encode_ms'][row]:7.1f} {results['decode_ms'][row]:7.1f}"
        )
    if any(math.isinf(value) for value in results["psnr-rgb"]):
        print("inf: a picture came back unchanged, so the mean PSNR is infinite (null in JSON)")


def _qualities(text: str) -> tuple[float, ...]:
    return tuple(quality(part) for part in text.split(","))
