"""``sparsecodec convert``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sparsecodec.cli.options import add_command, add_json, print_json
from sparsecodec.models.conversion import from_checkpoints
from sparsecodec.models.description import describe
from sparsecodec.models.video import VideoCodec
from sparsecodec.quant import trained_numbers
from sparsecodec.zoo import save


def add_to(subparsers) -> None:
    parser = add_command(subparsers, "convert", "published checkpoints to a codec for -m")
    parser.add_argument(
        "checkpoints",
        nargs="+",
        help="of EVC, DCVC, DCVC-HEM, DCVC-RT or CompressAI; for clips that of I frames and that of P frames",
    )
    parser.add_argument("-o", "--output", required=True, help="DIR/NAME of the codec: two files, without pickle")
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    model = from_checkpoints(arguments.checkpoints)
    save(model, arguments.output, info={"converted_from": [Path(path).name for path in arguments.checkpoints]})
    halves = (model.intra, model.inter) if isinstance(model, VideoCodec) else (model,)
    families = [describe(half)["family"] for half in halves]
    values = {"output": arguments.output, "families": families, "parameters": trained_numbers(model)}
    if arguments.json:
        print_json(values)
        return
    print(f"{arguments.output}: {' and '.join(families)}, {values['parameters']:,} parameters", file=sys.stderr)
