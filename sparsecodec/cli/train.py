"""``sparsecodec train``, ``prune``, ``distill``, ``search`` and ``quantize``: a recipe, by its method's own verb."""

from __future__ import annotations

import argparse
import functools
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn

from sparsecodec import training
from sparsecodec.cli.latency import CompiledTimer
from sparsecodec.cli.options import add_command, positive
from sparsecodec.data import RandomClips, RandomCrops, list_training_files
from sparsecodec.errors import UsageError
from sparsecodec.sparsity.latency import timed_by
from sparsecodec.training import distributed
from sparsecodec.zoo import load, names, save

COMMANDS = {
    "train": "a codec by a recipe; run it again to continue",
    "prune": "a codec by a recipe: gradient decay, mask decay, a plan, or N:M masks",
    "distill": "a student from a teacher, by a recipe",
    "search": "widths for a target in MACs, parameters or milliseconds, by a recipe; writes plan.json",
    "quantize": "a codec to integers, by a recipe",
}
OF_THE_RUN = ("checkpoint", "calibrated", "quantized", "plan", "latency", "log")  # what a run's own files are called


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
    output = _output(arguments)
    device = distributed.start(arguments.device)
    files = list_training_files(arguments.data, recipe.frames)
    if recipe.frames > 1:
        data = RandomClips(files, recipe.crop, recipe.frames, recipe.seed)
    else:
        data = RandomCrops(files, recipe.crop, recipe.seed)
    find = functools.partial(_codec, recipe_path=Path(arguments.recipe))
    model = training.initial_model(recipe, find)
    with timed_by(CompiledTimer):
        codec = training.run(recipe, model.to(device), data, arguments.out, find)
    if distributed.rank() == 0:
        save(codec, output, info={"recipe": asdict(recipe)}, dtype=torch.float16 if arguments.half else None)
        print(f"{output}.safetensors", file=sys.stderr)


def _output(arguments: argparse.Namespace) -> Path:
    """What the codec will be called, without a suffix; no file by which a run goes on may have its name."""
    name = Path(arguments.recipe).stem
    if name.lower().removesuffix(".safetensors").removesuffix(".json") in OF_THE_RUN:
        raise UsageError(
            f"{arguments.recipe}: the codec would be called as the run's own {name} files "
            f"(needs a recipe that is not called {', '.join(OF_THE_RUN)})"
        )
    return Path(arguments.out) / name


def _codec(name: str, recipe_path: Path) -> nn.Module:
    """A codec that a recipe starts or learns from; if it is not there yet, another recipe may make it."""
    path = Path(name.removesuffix(".safetensors").removesuffix(".json"))
    if name in names() or any(path.with_name(path.name + suffix).exists() for suffix in (".safetensors", ".json")):
        return load(name)
    maker = recipe_path.with_name(f"{path.name}.toml")
    where = "here" if path.parent == Path() else f"in {path.parent}"
    hint = f"; {maker} makes it: put {path.name}.safetensors and .json of its run {where}" if maker.exists() else ""
    raise UsageError(f"{name} is neither shipped ({', '.join(names())}) nor a file{hint}")
