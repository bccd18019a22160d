"""``sparsecodec decode``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from sparsecodec.cli import clips, published
from sparsecodec.cli.clip_io import check_file, refuse
from sparsecodec.cli.files import VIDEO_SUFFIX, Codecs, each, pairs, read_stream
from sparsecodec.cli.options import (
    add_command,
    add_compute,
    add_json,
    add_part,
    add_published,
    compute_options,
    memory,
    memory_left,
    positive,
    print_json,
    region,
)
from sparsecodec.data import write_image
from sparsecodec.data.images import writable_suffixes
from sparsecodec.data.video import is_clip
from sparsecodec.entropy import Header
from sparsecodec.errors import UsageError
from sparsecodec.runtime.tiles import check_pixels, region_of

MAX_PIXELS = 2**26  # 8192 x 8192; a decoder needs about 100 bytes for each
OUTPUT_BYTES = 8  # per pixel, of the picture in 8 bits and of Pillow's copy


def add_to(subparsers) -> None:
    parser = add_command(subparsers, "decode", "a file to a picture or a clip, or a folder of pictures to a folder")
    parser.add_argument("input", help=f"what encode wrote, or a folder of such; - is {VIDEO_SUFFIX} on stdin")
    parser.add_argument("output", help="photo.png, ...; clip.y4m, .yuv, or - for y4m on stdout; or a folder, for PNG")
    parser.add_argument("-m", "--model", help="shipped name or path (default: the shipped one that made the file)")
    parser.add_argument("--region", type=region, metavar="T,L,H,W", help="decode a part: top, left, height, width")
    parser.add_argument("--max-pixels", type=positive, default=MAX_PIXELS, help="refuse more (default: %(default)s)")
    parser.add_argument("--max-memory", type=memory, help="refuse what lets this process grow larger, as 2G")
    add_compute(parser)
    add_json(parser)
    clip = parser.add_argument_group("clips")
    add_part(clip)
    clip.add_argument("--raw", action="store_true", help="frames without y4m headers: planes Y, U, V")
    add_published(parser, encoding=False)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    if published.is_published(arguments.input):
        published.decode(arguments)
        return
    refuse(arguments, ("force_zero_thres", "stored_tables", "rate"), ".bin files of a published codec")
    if clips.is_coded_clip(arguments.input):
        clips.decode(arguments)
        return
    if is_clip(arguments.input) and Path(arguments.input).is_file():
        raise UsageError(f"{arguments.input} is not coded (needs what encode wrote: .spv, or .spc of a picture)")
    refuse(arguments, clips.CLIPS_ONLY, "clips")
    if not Path(arguments.input).is_dir():
        check_file(arguments, writable_suffixes(), "the suffix of a picture, as .png")
    codecs = Codecs(arguments.model, compute_options(arguments))

    def decode(paths: tuple[Path, Path]) -> dict[str, Any]:
        source, target = paths
        blob = read_stream(source)
        header = Header.read(blob)
        window = region_of(header, arguments.region)
        check_pixels(header, window, arguments.max_pixels)
        codec = codecs.of(header, source)
        limit = memory_left(arguments.max_memory, OUTPUT_BYTES * window.pixels)
        picture = codec.decode(blob, arguments.max_pixels, arguments.region, limit)
        write_image(picture, target)
        name = codecs.name(header, source)
        if not arguments.json:
            print(f"{target}: {window.width} x {window.height}, model {name}", file=sys.stderr)
        return {"output": str(target), "model": name, "height": window.height, "width": window.width}

    results = each(pairs(arguments.input, arguments.output, ".png"), decode)
    if arguments.json:
        print_json({"files": results} if Path(arguments.input).is_dir() else results[0])
