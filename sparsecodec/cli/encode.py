"""``sparsecodec encode``."""

from __future__ import annotations

import argparse
import sys

from sparsecodec.cli.options import (
    DEFAULT_MODEL,
    add_compute,
    add_json,
    compute_options,
    print_json,
    quality,
    write_bytes,
)
from sparsecodec.data import read_image
from sparsecodec.errors import UsageError
from sparsecodec.runtime import CompiledCodec, compile_codec
from sparsecodec.runtime.adapters import ScalableEVCCodec
from sparsecodec.zoo import load


def add_to(subparsers) -> None:
    parser = subparsers.add_parser("encode", help="a picture to a file")
    parser.add_argument("input", help="PNG, JPEG, PPM, ...")
    parser.add_argument("output", help="for example photo.spc")
    parser.add_argument("-m", "--model", default=DEFAULT_MODEL, help="shipped name or path (default: %(default)s)")
    parser.add_argument("--quality", type=quality, help="0 smallest to 100 best (default: 50)")
    parser.add_argument(
        "--prefix",
        type=int,
        help="of a codec with several encoders: run 0 to this one (default: try all, keep best)",
    )
    add_compute(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    x = read_image(arguments.input)
    codec = compile_codec(load(arguments.model), **compute_options(arguments))
    blob = codec.encode(x, quality=arguments.quality, **_effort(codec, arguments.prefix))
    write_bytes(arguments.output, blob)
    height, width = x.shape[2:]
    bpp = 8 * len(blob) / (height * width)
    if arguments.json:
        print_json({"output": arguments.output, "bytes": len(blob), "bpp": bpp, "height": height, "width": width})
    else:
        print(f"{arguments.output}: {width} x {height}, {len(blob)} bytes, {bpp:.4f} bpp", file=sys.stderr)


def _effort(codec: CompiledCodec, prefix: int | None) -> dict[str, int]:
    if prefix is None:
        return {}
    if not isinstance(codec, ScalableEVCCodec):
        raise UsageError(f"--prefix {prefix}: {type(codec).__name__} has one encoder")
    return {"prefix": prefix}
