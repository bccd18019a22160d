"""``sparsecodec encode``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sparsecodec.cli import clips, published
from sparsecodec.cli.clip_io import PIPE, check_file, refuse
from sparsecodec.cli.encoders import effort, encoding_codec
from sparsecodec.cli.files import SUFFIX, VIDEO_SUFFIX, each, pairs
from sparsecodec.cli.options import (
    DEFAULT_MODEL,
    DEFAULT_VIDEO_MODEL,
    add_command,
    add_compute,
    add_json,
    add_part,
    add_prefix,
    add_published,
    memory,
    memory_left,
    positive,
    print_json,
    quality,
    size,
    write_bytes,
)
from sparsecodec.data import has_transparency, list_images, read_image
from sparsecodec.data.video import is_clip
from sparsecodec.entropy import Header
from sparsecodec.errors import UsageError
from sparsecodec.runtime import CompiledCodec

CALIBRATION_PICTURES, CALIBRATION_SIDE = 16, 512  # their middles: more changes little and takes long


def add_to(subparsers) -> None:
    parser = add_command(subparsers, "encode", "a picture or a clip to a file, or a folder of pictures to a folder")
    parser.add_argument("input", help="PNG, JPEG, ..., a folder of such; MP4, y4m, YUV, ...; - is y4m on stdin")
    parser.add_argument("output", help="photo.spc; clip.spv, - for stdout; clip.bin; or the folder to write to")
    parser.add_argument(
        "-m", "--model", help=f"shipped name or path (default: {DEFAULT_MODEL}, of clips {DEFAULT_VIDEO_MODEL})"
    )
    parser.add_argument("--quality", type=quality, help="0 smallest to 100 best (default: 50)")
    add_prefix(parser)
    parser.add_argument("--tile", type=positive, help="side of the tiles of larger pictures, for example 1024")
    parser.add_argument("--overlap", type=int, help="pixels that neighbouring tiles share (default: 16)")
    parser.add_argument("--max-memory", type=memory, help="of this process, as 2G: chooses the tiles")
    parser.add_argument(
        "--stream",
        choices=("native", "portable"),
        help="portable: the same symbols on every device (default: portable if the model's integers are there)",
    )
    parser.add_argument("--calibration", help="folder of photos, or of clips, that make a float model portable")
    parser.add_argument("--save-model", help="where to keep the model that --calibration makes: its files need it")
    add_compute(parser)
    add_json(parser)
    clip = parser.add_argument_group("clips")
    clip.add_argument("--qp", type=int, help=f"0 smallest to 63 best (default: {clips.QP})")
    clip.add_argument("--intra-period", type=int, help="frames between those that decode alone; 0: only the first does")
    add_part(clip)
    clip.add_argument("--size", type=size, metavar="WxH", help="of raw frames: planes Y, U, V, 4:2:0")
    clip.add_argument("--rate", "--fps", help="frames per second of raw frames and pictures (default: 25)")
    clip.add_argument("--depth", type=int, choices=(8, 10), help="bits of raw samples (default: 8)")
    add_published(parser, encoding=True)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    if arguments.input != PIPE and not Path(arguments.input).exists():
        raise UsageError(f"{arguments.input} does not exist")
    if published.is_wanted(arguments):
        published.encode(arguments)
        return
    refuse(arguments, (*published.ONLY, "stored_tables"), ".bin files of a published codec")
    if clips.is_clip_to_encode(arguments):
        clips.encode(arguments)
        return
    refuse(arguments, clips.CLIPS_ONLY, "clips")
    if Path(arguments.input).is_dir():
        if is_clip(arguments.output):
            raise UsageError(f"{arguments.output}: a folder becomes a folder of {SUFFIX} files, or one {VIDEO_SUFFIX}")
    else:
        check_file(arguments, (SUFFIX,), f"{SUFFIX}; {VIDEO_SUFFIX} is for clips, {arguments.input} is none")
    arguments.model = arguments.model or DEFAULT_MODEL
    work = pairs(arguments.input, arguments.output, SUFFIX)
    codec = encoding_codec(arguments, CompiledCodec, "pictures", _calibration)
    options = {"quality": arguments.quality, "tile": arguments.tile, "overlap": arguments.overlap}
    options |= effort(codec, arguments.prefix)

    def encode(paths: tuple[Path, Path]) -> dict[str, Any]:
        source, target = paths
        x = read_image(source)
        blob = codec.encode(x, max_memory=memory_left(arguments.max_memory), **options)
        write_bytes(target, blob)
        height, width = x.shape[2:]
        rows, columns = Header.read(blob).grid
        values = {"output": str(target), "bytes": len(blob), "bpp": 8 * len(blob) / (height * width)}
        values |= {"height": height, "width": width, "tiles": [rows, columns]}
        if not arguments.json:
            tiles = f", {rows} x {columns} tiles" if rows * columns > 1 else ""
            dropped = ", its transparency is dropped" if has_transparency(source) else ""
            print(
                f"{target}: {width} x {height}{tiles}, {len(blob)} bytes, {values['bpp']:.4f} bpp{dropped}",
                file=sys.stderr,
            )
        return values

    results = each(work, encode)
    if arguments.json:
        print_json({"files": results} if Path(arguments.input).is_dir() else results[0])


def _calibration(folder: str, model: nn.Module) -> list[Tensor]:
    return [_middle(path) for path in list_images(folder)[:CALIBRATION_PICTURES]]


def _middle(path: Path) -> Tensor:
    x = read_image(path)
    top, left = (max((side - CALIBRATION_SIDE) // 2, 0) for side in x.shape[2:])
    return x[:, :, top : top + CALIBRATION_SIDE, left : left + CALIBRATION_SIDE].contiguous()
