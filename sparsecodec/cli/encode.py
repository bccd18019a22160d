"""``sparsecodec encode``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from sparsecodec.cli.files import SUFFIX, each, pairs
from sparsecodec.cli.options import (
    DEFAULT_MODEL,
    add_compute,
    add_json,
    compute_options,
    memory,
    memory_left,
    positive,
    print_json,
    quality,
    usual_stream,
    write_bytes,
)
from sparsecodec.data import list_images, read_image
from sparsecodec.entropy import Header
from sparsecodec.errors import UsageError
from sparsecodec.quant import is_portable
from sparsecodec.runtime import CompiledCodec, compile_codec
from sparsecodec.runtime.adapters import ScalableEVCCodec
from sparsecodec.zoo import load, save

CALIBRATION_PICTURES, CALIBRATION_SIDE = 16, 512  # their middles: more changes little and takes long


def add_to(subparsers) -> None:
    parser = subparsers.add_parser("encode", help="a picture to a file, or a folder of pictures to a folder")
    parser.add_argument("input", help="PNG, JPEG, PPM, ..., or a folder of such")
    parser.add_argument("output", help=f"for example photo{SUFFIX}; of a folder, the folder to write to")
    parser.add_argument("-m", "--model", default=DEFAULT_MODEL, help="shipped name or path (default: %(default)s)")
    parser.add_argument("--quality", type=quality, help="0 smallest to 100 best (default: 50)")
    parser.add_argument(
        "--prefix",
        type=int,
        help="of a codec with several encoders: run 0 to this one (default: try all, keep best)",
    )
    parser.add_argument("--tile", type=positive, help="side of the tiles of larger pictures, for example 1024")
    parser.add_argument("--overlap", type=int, help="pixels that neighbouring tiles share (default: 16)")
    parser.add_argument("--max-memory", type=memory, help="of this process, as 2G: chooses the tiles")
    parser.add_argument(
        "--stream",
        choices=("native", "portable"),
        help="portable: the same symbols on every device (default: portable if the model's integers are there)",
    )
    parser.add_argument("--calibration", help="folder of photos that make a float model portable")
    parser.add_argument("--save-model", help="where to keep the model that --calibration makes: its files need it")
    add_compute(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    work = pairs(arguments.input, arguments.output, SUFFIX)
    codec = _codec(arguments)
    options = {"quality": arguments.quality, "tile": arguments.tile, "overlap": arguments.overlap}
    options |= _effort(codec, arguments.prefix)

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
            print(f"{target}: {width} x {height}{tiles}, {len(blob)} bytes, {values['bpp']:.4f} bpp", file=sys.stderr)
        return values

    results = each(work, encode)
    if arguments.json:
        print_json({"files": results} if Path(arguments.input).is_dir() else results[0])


def _codec(arguments: argparse.Namespace) -> CompiledCodec:
    model = load(arguments.model)
    stream = arguments.stream or usual_stream(model)
    options = {"stream": stream, **compute_options(arguments)}
    if arguments.calibration is None:
        if arguments.save_model is not None:
            raise UsageError("--save-model keeps what --calibration makes, which is missing")
        if stream == "portable" and not is_portable(model):
            raise UsageError(
                f"--stream portable: {arguments.model} is a float model; give --calibration FOLDER of photos and "
                "--save-model PATH for what it becomes"
            )
        return compile_codec(model, **options)
    if stream != "portable" or arguments.save_model is None or is_portable(model):
        raise UsageError(
            "--calibration makes a float model portable: give --stream portable and --save-model PATH too, and a model "
            "whose integers are not there yet"
        )
    pictures = [_middle(path) for path in list_images(arguments.calibration)[:CALIBRATION_PICTURES]]
    codec = compile_codec(model, calibration=pictures, **options)
    save(codec.portable_model, arguments.save_model)
    return codec


def _middle(path: Path):
    x = read_image(path)
    top, left = (max((side - CALIBRATION_SIDE) // 2, 0) for side in x.shape[2:])
    return x[:, :, top : top + CALIBRATION_SIDE, left : left + CALIBRATION_SIDE].contiguous()


def _effort(codec: CompiledCodec, prefix: int | None) -> dict[str, int]:
    if prefix is None:
        return {}
    if not isinstance(codec, ScalableEVCCodec):
        raise UsageError(f"--prefix {prefix}: {type(codec).__name__} has one encoder")
    return {"prefix": prefix}
