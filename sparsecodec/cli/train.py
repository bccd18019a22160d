"""``sparsecodec train``, ``prune``, ``distill``, ``search`` and ``quantize``: a recipe, by its method's own verb."""

from __future__ import annotations

import argparse
import functools
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch

from sparsecodec import training
from sparsecodec.cli.latency import CompiledTimer
from sparsecodec.cli.options import add_command, positive
from sparsecodec.data import RandomClips, RandomCrops, list_training_files
from sparsecodec.errors import UsageError
from sparsecodec.sparsity.latency import timed_by
from sparsecodec.training import distributed
from sparsecodec.zoo import load, save

COMMANDS = {
    "train": "a codec by a recipe; run it again to continue",
    "prune": "a codec by a recipe: gradient decay, mask decay, a plan, or N:M masks",
    "distill": "a student from a teacher, by a recipe",
    "search": "widths for a target in MACs, parameters or milliseconds, by a recipe; writes plan.json",
    "quantize": "a codec to integers, by a recipe",
}


def add_to(subparsers) -> None:
    for command, text in COMMANDS.items():
        parser = add_command(subparsers, command, text)
        parser.add_argument("recipe", help="TOML, see recipes/")
        parser.add_argument(
            "data", nargs="+", help="folders of pictures and video clips; frames >= 2: also of folders of frames"
        )
        parser.add_argument(
            "--out", required=True, help="folder of the run: checkpoints, logs, and the codec at the end"
        )
        parser.add_argument("--half", action="store_true", help="store the weights in float16")
        parser.add_argument("--seed", type=int, help="another one than the recipe's")
        parser.add_argument("--device", default="cpu", help="where to train (default: cpu)")
        parser.add_argument("--threads", type=positive, help="of the CPU (default: torch's choice)")
        parser.set_defaults(run=functools.partial(run, command=command))


def run(arguments: argparse.Namespace, command: str) -> None:
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    recipe = training.Recipe.load(arguments.recipe)
    if arguments.seed is not None:
        recipe = replace(recipe, seed=arguments.seed)
    if recipe.command != command:
        raise UsageError(f"{arguments.recipe} does not {command} (run it by: sparsecodec {recipe.command})")
    device = distributed.start(arguments.device)
    files = list_training_files(arguments.data, recipe.frames)
    if recipe.frames > 1:
        data = RandomClips(files, recipe.crop, recipe.frames, recipe.seed)
    else:
        data = RandomCrops(files, recipe.crop, recipe.seed)
    model = training.initial_model(recipe, load)
    with timed_by(CompiledTimer):
        codec = training.run(recipe, model.to(device), data, arguments.out, load)
    if distributed.rank() == 0:
        output = Path(arguments.out) / Path(arguments.recipe).stem
        save(codec, output, info={"recipe": asdict(recipe)}, dtype=torch.float16 if arguments.half else None)
        print(f"{output}.safetensors", file=sys.stderr)
