"""``sparsecodec eval``."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from tqdm import tqdm

from sparsecodec.cli.options import add_compute, add_json, compute_options, print_json, quality, write_json
from sparsecodec.data import list_images
from sparsecodec.info import environment
from sparsecodec.metrics import JPEG, evaluate
from sparsecodec.runtime import compile_codec
from sparsecodec.zoo import load

QUALITIES = (0.0, 25.0, 50.0, 75.0, 100.0)
JPEG_QUALITIES = (5.0, 10.0, 20.0, 35.0, 50.0, 70.0, 85.0, 95.0)


def add_to(subparsers) -> None:
    parser = subparsers.add_parser("eval", help="rate and quality of a codec over a folder, on real bytes")
    parser.add_argument("model", help="shipped name or path; 'jpeg' for Pillow's JPEG")
    parser.add_argument("folder", help="of pictures")
    parser.add_argument("-q", "--qualities", type=_qualities, help="comma-separated (default: 0,25,50,75,100)")
    parser.add_argument("-o", "--output", help="write the result to this file too")
    parser.add_argument("--per-picture", action="store_true", help="keep the figures of each picture")
    add_compute(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    pictures = list_images(arguments.folder)
    options = compute_options(arguments)
    extra: dict[str, Any] = {}
    if arguments.model == "jpeg":
        codec, qualities = JPEG(), arguments.qualities or JPEG_QUALITIES
    else:
        codec, qualities = compile_codec(load(arguments.model), **options), arguments.qualities or QUALITIES
        extra = {"mac_per_pixel": codec.report.macs, "dtype": str(codec.dtype).removeprefix("torch.")}
    result = evaluate(codec, pictures, qualities, arguments.model, partial(tqdm, desc=arguments.model, unit="picture"))
    if not arguments.per_picture:
        del result["per_picture"]
    result |= {**extra, "environment": environment()}
    if arguments.output:
        write_json(arguments.output, result)
    if arguments.json:
        print_json(result)
    else:
        _print_table(result)


def _print_table(result: dict[str, Any]) -> None:
    results = result["results"]
    print(f"{result['name']}: {result['description']}")
    print(" quality      bpp  PSNR dB  MS-SSIM  enc s  dec s")
    for row, level in enumerate(result["qualities"]):
        ms_ssim = results["ms-ssim-rgb"][row]
        print(
            f"{level:8g} {results['bpp_file'][row]:8.4f} {results['psnr-rgb'][row]:8.3f}"
            f" {'-' if ms_ssim is None else format(ms_ssim, '.5f'):>8}"
            f" {results['encoding_time'][row]:6.3f} {results['decoding_time'][row]:6.3f}"
        )


def _qualities(text: str) -> tuple[float, ...]:
    return tuple(quality(part) for part in text.split(","))
