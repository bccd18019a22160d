"""``sparsecodec train``."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from sparsecodec import training
from sparsecodec.cli.options import positive
from sparsecodec.data import RandomCrops, list_images
from sparsecodec.models import create
from sparsecodec.zoo import load, save


def add_to(subparsers) -> None:
    parser = subparsers.add_parser("train", help="a codec by a recipe, dense or pruned; run it again to continue")
    parser.add_argument("recipe", help="TOML, see recipes/")
    parser.add_argument("photos", nargs="+", help="folders of pictures")
    parser.add_argument("--out", required=True, help="folder of the run: checkpoints, logs, and the codec at the end")
    parser.add_argument("--half", action="store_true", help="store the weights in float16")
    parser.add_argument("--device", default="cpu", help="where to train (default: cpu)")
    parser.add_argument("--threads", type=positive, help="of the CPU (default: torch's choice)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    recipe = training.Recipe.load(arguments.recipe)
    crops = RandomCrops([path for folder in arguments.photos for path in list_images(folder)], recipe.crop, recipe.seed)
    torch.manual_seed(recipe.seed)
    model = load(recipe.start_from) if recipe.start_from else create(recipe.model)
    codec, compact = training.run(recipe, model.to(arguments.device), crops, arguments.out)
    output = Path(arguments.out) / Path(arguments.recipe).stem
    save(codec, output, compact, info={"recipe": asdict(recipe)}, dtype=torch.float16 if arguments.half else None)
    print(f"{output}.safetensors", file=sys.stderr)
