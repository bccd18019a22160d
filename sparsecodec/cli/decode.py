"""``sparsecodec decode``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sparsecodec.cli.options import add_compute, add_json, compute_options, positive, print_json
from sparsecodec.data import write_image
from sparsecodec.entropy.bitstream import Container
from sparsecodec.errors import ModelMismatchError, UsageError
from sparsecodec.runtime import compile_codec
from sparsecodec.zoo import find, load

MAX_PIXELS = 2**26  # 8192 x 8192; a decoder needs about 100 bytes for each


def add_to(subparsers) -> None:
    parser = subparsers.add_parser("decode", help="a file to a picture")
    parser.add_argument("input", help="what encode wrote")
    parser.add_argument("output", help="the suffix chooses the format, for example photo.png")
    parser.add_argument("-m", "--model", help="shipped name or path (default: the shipped one that made the file)")
    parser.add_argument("--max-pixels", type=positive, default=MAX_PIXELS, help="refuse more (default: %(default)s)")
    add_compute(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    blob = read_stream(arguments.input)
    container = Container.from_bytes(blob, max_pixels=arguments.max_pixels)
    name = arguments.model or find(container.model_hash)
    if name is None:
        raise ModelMismatchError(
            f"{arguments.input} was made by model {container.model_hash.hex()}, which is none of those that ship; "
            "name its files with -m"
        )
    codec = compile_codec(load(name), **compute_options(arguments))
    write_image(codec.decode(blob, max_pixels=arguments.max_pixels), arguments.output)
    size = {"height": container.height, "width": container.width}
    if arguments.json:
        print_json({"output": arguments.output, "model": str(name), **size})
    else:
        print(f"{arguments.output}: {container.width} x {container.height}, model {name}", file=sys.stderr)


def read_stream(path: str) -> bytes:
    """The bytes of a file.

    Raises:
        UsageError: it does not exist or cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise UsageError(f"{path} does not exist") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
