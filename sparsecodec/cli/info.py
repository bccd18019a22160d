"""``sparsecodec info``."""

from __future__ import annotations

import argparse
from typing import Any

from sparsecodec.cli import published
from sparsecodec.cli.clip_checks import describe_clip
from sparsecodec.cli.clips import is_coded_clip
from sparsecodec.cli.files import read_stream
from sparsecodec.cli.options import add_command, add_json, print_json
from sparsecodec.entropy import Header
from sparsecodec.info import backends, environment
from sparsecodec.runtime.numerics import described
from sparsecodec.zoo import find, names


def add_to(subparsers) -> None:
    parser = add_command(subparsers, "info", "what this installation can do, or the header of a file")
    parser.add_argument("file", nargs="?", help="what encode wrote, also .bin files and folders of such")
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    problem = None
    if arguments.file is not None and published.is_published(arguments.file):
        values, problem = published.describe(arguments.file)
    elif arguments.file is not None and is_coded_clip(arguments.file):
        values, problem = describe_clip(arguments.file)
    else:
        values = _header(arguments.file) if arguments.file else _installation()
    _print(values, arguments.json)
    if problem is not None:
        raise problem


def _print(values: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(values)
        return
    for key, value in values.items():
        if isinstance(value, dict):
            print(f"{key}:")
            for name, text in value.items():
                print(f"  {name:10} {'available' if text is None else text}")
        else:
            text = " ".join(map(str, value)) if isinstance(value, list) else value
            print(f"{key + ':':16} {'-' if text is None else text}")


def _installation() -> dict[str, Any]:
    return {**environment(), "models": names(), "backends": backends()}


def _header(path: str) -> dict[str, Any]:
    blob = read_stream(path)
    header = Header.read(blob)
    rows, columns = header.grid
    tiles = [header.payloads(blob, row, column) for row in range(rows) for column in range(columns)]
    sizes = [[len(payload) for payload in payloads] for payloads in tiles]
    tiling = header.tiling
    return {
        "version": header.version,
        "width": header.width,
        "height": header.height,
        "tiles": None if tiling is None else f"{rows} x {columns} of {tiling.side}, sharing {tiling.overlap}",
        "quality_field": header.quality,
        "reconstruction": "exact" if header.exact else "float",
        "model_hash": header.model_hash.hex(),
        "model": find(header.model_hash),
        "numerics": f"{header.numerics:#06x}",
        "numerics_name": described(header.numerics),
        "header_bytes": header.header_bytes,
        "payload_bytes": sizes[0] if tiling is None else sizes,
        "bytes": len(blob),
        "bpp": 8 * len(blob) / (header.width * header.height),
    }
