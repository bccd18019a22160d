"""A recipe from start to finish."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from sparsecodec._files import replacing, writing
from sparsecodec.errors import SparseCodecError, UsageError
from sparsecodec.models import EVC, create, names
from sparsecodec.models.description import describe
from sparsecodec.models.video import VideoCodec
from sparsecodec.nn.fingerprint import model_hash
from sparsecodec.training import distributed, methods
from sparsecodec.training.families import family_of, trains_clips
from sparsecodec.training.recipe import Recipe
from sparsecodec.training.tables import refresh_tables
from sparsecodec.training.trainer import Data, Trainer

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

STARTED_FROM = "started_from.txt"
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
        The averaged codec in eval mode, with the entropy tables of its weights. One that is no plain architecture
        carries ``compact_config`` or ``quantization``, which `sparsecodec.save` writes.

    Raises:
        UsageError: the recipe does not fit the model, or the folder holds another run, or one that started from other
            weights, or one that is at work.
        SparseCodecError: the training diverged; the message names the step and the layer.
    """
    folder = Path(folder)
    stride = family_of(model).stride
    if recipe.crop % stride:
        raise UsageError(f"crop={recipe.crop} (needs a multiple of {stride} for {recipe.model})")
    if recipe.frames < 2 and trains_clips(model, recipe.trains):
        way = ', or trains=["intra"]' if isinstance(model, VideoCodec) else ""
        raise UsageError(
            f"frames={recipe.frames} (needs 2 or more: the inter model of {recipe.model} is not run on a crop's first "
            f"frame{way})"
        )
    if recipe.command != "quantize" and getattr(model, "quantization", None) is not None:
        name = recipe.start_from or recipe.model
        raise UsageError(f"{name} holds frozen integers, which do not learn (start from the float codec)")
    if recipe.command in NEEDS_DENSE and getattr(model, "compact_config", None) is not None:
        raise UsageError(f"{recipe.start_from} is pruned already (start from a dense codec)")
    with _alone_in(folder):
        began = (folder / STARTED_FROM).exists()
        if recipe.start_from:
            _remember_start(folder, recipe.start_from, model)
        try:
            if recipe.method == methods.PLAIN:
                codec = Trainer(recipe, model, data, folder).run()
            else:
                method = methods.module_of(recipe.method)
                codec = method.run(recipe, recipe.settings, model, data, folder, load or _no_loader)
        except SparseCodecError:
            kept = any(path.suffix in (".safetensors", ".json") for path in folder.rglob("*"))
            if not (began or kept) and distributed.rank() == 0:  # refused before it made anything: no run began
                (folder / STARTED_FROM).unlink(missing_ok=True)
            raise
    refresh_tables(codec)
    return codec


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keeps other runs out of a folder, as far as its file system and the system can: none would notice the other."""
    if fcntl is None or distributed.rank() != 0:
        yield
        return
    there = folder.exists()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise UsageError(f"another run works in {folder} (needs a folder of its own)") from error
    except OSError:  # a file system without locks
        pass
    try:
        yield
    finally:
        os.close(handle)
        if not there:
            with suppress(OSError):  # a run that was refused before it made anything leaves no folder
                folder.rmdir()


def initial_model(recipe: Recipe, load: Callable[[str], nn.Module]) -> nn.Module:
    """The codec that a run of `recipe` starts from; random weights are those of its seed.

    Args:
        recipe: names it.
        load: as for `run`.

    Raises:
        UsageError: a name does not exist, or the weights do not fit.
    """
    if recipe.start_from:
        return _checked_start(recipe, load(recipe.start_from))
    if recipe.model not in names():
        raise UsageError(
            f"model={recipe.model!r} has no random weights to start from (needs one of {', '.join(names())}; others, "
            "as CompressAI's, are converted and named by start_from)"
        )
    torch.manual_seed(recipe.seed)
    model = create(recipe.model)
    if recipe.backbone:
        _load_backbone(recipe, model, load(recipe.backbone))
    return model


def _load_backbone(recipe: Recipe, model: nn.Module, backbone: nn.Module) -> None:
    """Gives `model` the weights of the finished codec that it is built around."""
    named, weights = f"backbone={recipe.backbone!r}", backbone.state_dict()
    if isinstance(model, EVC):
        model.load_backbone(weights)
    elif not isinstance(model, VideoCodec):
        raise UsageError(f"{named}: {recipe.model} is neither a codec with attention nor one of clips")
    elif _shapes(weights) != _shapes(model.intra.state_dict()):
        raise UsageError(f"{named}: layers or widths differ from those of {recipe.model}'s intra model")
    else:
        model.intra.load_state_dict(weights)


def _shapes(weights: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: weight.shape for name, weight in weights.items()}


def _checked_start(recipe: Recipe, model: nn.Module) -> nn.Module:
    """`model`, if it is not another architecture than the recipe says; other names than `create` has are labels."""
    if recipe.model in names() and recipe.method != "scalable":  # whose recipes name the codec that it ends with
        with torch.random.fork_rng(devices=[]):
            expected = describe(create(recipe.model))
        if describe(model) != expected:
            raise UsageError(
                f"model={recipe.model!r} is another architecture than start_from={recipe.start_from!r} "
                "(needs the name of that one, or a label of your own)"
            )
    return model


def _remember_start(folder: Path, name: str, model: nn.Module) -> None:
    """Keeps the fingerprint of the weights that a run began with; one that goes on must begin with them."""
    path, found = folder / STARTED_FROM, model_hash(model).hex()
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
