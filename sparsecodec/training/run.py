"""A recipe from start to finish."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from sparsecodec._files import replacing, writing
from sparsecodec.errors import UsageError
from sparsecodec.models import EVC, create
from sparsecodec.nn.fingerprint import model_hash
from sparsecodec.training import distributed, methods
from sparsecodec.training.recipe import Recipe
from sparsecodec.training.trainer import Data, Trainer

NEEDS_DENSE = ("prune", "search")


def run(
    recipe: Recipe, model: nn.Module, data: Data, folder: str | Path, load: Callable[[str], nn.Module] | None = None
) -> nn.Module:
    """Trains `model` as the recipe says; a run that was cut off goes on where it was.

    Args:
        recipe: what to do.
        model: the codec to start from; it is trained in place.
        data: where batches come from.
        folder: for checkpoints and logs, a folder for each phase.
        load: gives other codecs by name or path, such as a teacher; `sparsecodec.load` does.

    Returns:
        The averaged codec in eval mode. One that is no plain architecture carries ``compact_config`` or
        ``quantization``, which `sparsecodec.save` writes.

    Raises:
        UsageError: the recipe does not fit the model, or the folder holds another run, or one that started from other
            weights.
        SparseCodecError: the training diverged; the message names the step and the layer.
    """
    folder = Path(folder)
    if recipe.start_from:
        _remember_start(folder, recipe.start_from, model)
    if recipe.method == methods.PLAIN:
        return Trainer(recipe, model, data, folder).run()
    if recipe.command in NEEDS_DENSE and getattr(model, "compact_config", None) is not None:
        raise UsageError(f"{recipe.start_from} is pruned already (start from a dense codec)")
    return methods.module_of(recipe.method).run(recipe, recipe.settings, model, data, folder, load or _no_loader)


def initial_model(recipe: Recipe, load: Callable[[str], nn.Module]) -> nn.Module:
    """The codec that a run of `recipe` starts from; random weights are those of its seed.

    Args:
        recipe: names it.
        load: as for `run`.

    Raises:
        UsageError: a name does not exist, or the weights do not fit.
    """
    if recipe.start_from:
        return load(recipe.start_from)
    torch.manual_seed(recipe.seed)
    model = create(recipe.model)
    if recipe.backbone:
        if not isinstance(model, EVC):
            raise UsageError(f"backbone={recipe.backbone!r}: {recipe.model} is no codec with attention")
        model.load_backbone(load(recipe.backbone).state_dict())
    return model


def _remember_start(folder: Path, name: str, model: nn.Module) -> None:
    """Keeps the fingerprint of the weights that a run began with; one that goes on must begin with them."""
    path, found = folder / "started_from.txt", model_hash(model).hex()
    if not path.exists():
        if distributed.rank() == 0:
            with writing(path):
                folder.mkdir(parents=True, exist_ok=True)
                with replacing(path) as partial:
                    partial.write_text(found)
    elif path.read_text() != found:
        raise UsageError(f"{name} has other weights than when the run in {folder} began: train in another folder")


def _no_loader(name: str) -> nn.Module:
    raise UsageError(f"{name} cannot be loaded: run() was given no `load`")
