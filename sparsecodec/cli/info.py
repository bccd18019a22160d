"""``sparsecodec info``."""

from __future__ import annotations

import argparse
from typing import Any

from sparsecodec.cli.decode import read_stream
from sparsecodec.cli.options import add_json, print_json
from sparsecodec.entropy.bitstream import Container
from sparsecodec.info import backends, environment
from sparsecodec.zoo import find, names


def add_to(subparsers) -> None:
    parser = subparsers.add_parser("info", help="what this installation can do, or the header of a file")
    parser.add_argument("file", nargs="?", help="what encode wrote")
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    values = _header(arguments.file) if arguments.file else _installation()
    if arguments.json:
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
    container = Container.from_bytes(blob)
    return {
        "width": container.width,
        "height": container.height,
        "quality_field": container.quality,
        "model_hash": container.model_hash.hex(),
        "model": find(container.model_hash),
        "numerics": f"{container.numerics:#06x}",
        "payload_bytes": [len(payload) for payload in container.payloads],
        "bytes": len(blob),
        "bpp": 8 * len(blob) / (container.width * container.height),
    }
