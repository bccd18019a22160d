"""``sparsecodec eval`` of a folder of clips."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sparsecodec._clip_format import ClipFormat
from sparsecodec.cli.options import compute_options, print_json, usual_stream, write_json
from sparsecodec.data import list_clips
from sparsecodec.data.colour import Planes, to_frame, to_planes
from sparsecodec.data.picture_folders import is_picture_folder
from sparsecodec.data.video import is_clip
from sparsecodec.errors import UsageError
from sparsecodec.info import environment
from sparsecodec.metrics import ANCHORS, CLIP_ANCHORS, evaluate_clips
from sparsecodec.models.video import VideoCodec
from sparsecodec.quant import trained_numbers
from sparsecodec.runtime import compile_codec
from sparsecodec.runtime.video import QPS, CompiledVideo
from sparsecodec.sparsity import count
from sparsecodec.training import family_of
from sparsecodec.zoo import load

SIDE = 256
CURVE = (0, 16, 32, 48, QPS - 1)


class CodedClips:
    """A compiled video codec as `evaluate_clips` takes it: `.spv` files with one intra frame."""

    def __init__(self, codec: CompiledVideo) -> None:
        self.codec = codec

    def encode(self, form: ClipFormat, frames: Iterable[Planes], qp: int) -> Iterator[bytes]:
        encoder = self.codec.encoder(form, qp, intra_period=0)
        last = None
        for planes in frames:
            if last is not None:
                yield last
            last = encoder.push(to_frame(planes, form, self.codec.colour))
        end = encoder.finish()
        yield (last or b"") + end

    def decode(self, data: bytes, form: ClipFormat) -> Iterator[Planes]:
        for frame in self.codec.decoder(data):
            yield to_planes(frame, form, self.codec.colour)


def holds_clips(folder: str | Path, model: str) -> bool:
    """Whether `folder` is one clip, or a folder with clips in it; pictures are a clip where `model` codes clips."""
    folder = Path(folder)
    if not folder.is_dir():
        return folder.is_file() and is_clip(folder)
    if any(map(is_clip, folder.iterdir())):
        return True
    if not _sequences(folder):
        return False
    return model in CLIP_ANCHORS or (model not in ANCHORS and isinstance(load(model), VideoCodec))


def _sequences(folder: Path) -> list[Path]:
    """`folder`, if pictures are in it, or those folders in it that have pictures."""
    if is_picture_folder(folder):
        return [folder]
    return sorted(path for path in folder.iterdir() if path.is_dir() and is_picture_folder(path))


def run(arguments: argparse.Namespace) -> None:
    folder = Path(arguments.folder)
    if folder.is_file():
        clips = [folder]
    else:
        clips = list_clips(folder) if any(map(is_clip, folder.iterdir())) else _sequences(folder)
    options = compute_options(arguments)
    machine = environment()
    name = Path(arguments.model).name
    anchor = CLIP_ANCHORS.get(arguments.model)
    extra: dict[str, Any] = {"device": machine["cpu"]}
    if anchor is not None:
        codec, curve = anchor, anchor.curve
        extra["preset"] = anchor.preset
    else:
        model = load(arguments.model)
        stream = usual_stream(model)
        compiled = compile_codec(model, stream=stream, **options)
        if not isinstance(compiled, CompiledVideo):
            raise UsageError(f"{arguments.model} is a codec for pictures, {arguments.folder} holds clips")
        codec, curve = CodedClips(compiled), CURVE
        extra |= {"stream": stream, "parameters": trained_numbers(model), "mac_per_pixel": _macs_per_pixel(model)}
    qps = curve if arguments.qualities is None else tuple(map(_whole, arguments.qualities))
    result = evaluate_clips(codec, clips, qps, arguments.frames, name, partial(tqdm, desc=name, unit="clip"))
    if not arguments.per_picture:
        for row in result["per_clip"]:
            del row["results"]["bits"]
    result |= {**extra, "environment": machine}
    if arguments.output:
        write_json(arguments.output, result)
    if arguments.json:
        print_json(result)
    else:
        _print_table(result)


def _macs_per_pixel(model: VideoCodec) -> float:
    """Of encoding a predicted frame, which includes decoding it."""
    shapes = family_of(model).transforms(model, "all", SIDE)
    predicted = {path: shape for path, shape in shapes.items() if path.startswith("inter.")}
    return count(model, predicted).macs / SIDE**2


def _whole(value: float) -> int:
    if value != int(value):
        raise UsageError(f"qp {value:g} (needs a whole number)")
    return int(value)


def _print_table(result: dict[str, Any]) -> None:
    print(f"{result['name']}: {result['description']}; {result['device']}")
    print(" qp      bpp    kbit/s  PSNR-YUV  PSNR-Y  PSNR-U  PSNR-V  enc fps  dec fps  clip")
    means = {"clip": "mean", "results": result["results"]}
    for entry in (*result["per_clip"], *([means] if len(result["per_clip"]) > 1 else [])):
        row = entry["results"]
        for i, qp in enumerate(result["qualities"]):
            print(
                f"{qp:>3} {row['bpp_file'][i]:8.4f} {row['kbit_s'][i]:9.1f} {row['psnr-yuv'][i]:9.3f}"
                f" {row['psnr-y'][i]:7.3f} {row['psnr-u'][i]:7.3f} {row['psnr-v'][i]:7.3f}"
                f" {row['encode_fps'][i]:8.2f} {row['decode_fps'][i]:8.2f}  {entry['clip']}"
            )
