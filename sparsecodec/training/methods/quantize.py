"""Quantisation: calibrated on the rate-distortion loss of a few crops, then trained further on integers if asked."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn
from tqdm import tqdm

from sparsecodec._files import replacing, writing
from sparsecodec.errors import UsageError
from sparsecodec.quant import (
    BITS,
    W8A16,
    Precision,
    bytes_where_cheap,
    find_layers,
    freeze,
    plan_for_bytes,
    plan_for_threshold,
    portable,
    post_training,
    prove_no_overflow,
    quantize_layers,
    quantized_layers,
    sensitivities,
    stored_bytes,
)
from sparsecodec.quant.portable import inexact_layers
from sparsecodec.quant.portable_video import is_video
from sparsecodec.training import distributed
from sparsecodec.training.checkpoint import write_tensors
from sparsecodec.training.families import calibration_loss, family_of, trained_transforms
from sparsecodec.training.fields import check_numbers
from sparsecodec.training.recipe import Recipe
from sparsecodec.training.tables import refresh_tables
from sparsecodec.training.trainer import Data, Trainer, phase

COMMAND = "quantize"
RULES = ("max", "mse", "rd")
CALIBRATION_STEP = 10**9  # of the data: crops that no training step sees

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """What is quantised, and how carefully.

    Attributes:
        transforms: "decoder", "encoder", "all", or "entropy": only the networks that choose entropy tables
            (`Family.entropy`), which needs `entropy_bits`.
        weight_bits: 4 or 8.
        activation_bits: 8 or 16.
        entropy_bits: of the activations of the networks that choose entropy tables: 16, with 8-bit weights and scales
            that integers alone can apply, and the codec stores its tables, so that it writes portable streams; for
            EVC and CompressAI's codecs without a context model. None leaves those networks float.
        entropy_threshold: of their layers, and with `exact` of the synthesis', those take inputs of 8 bits that alone
            cost at most this share of the loss: faster where processors multiply bytes.
        exact: scales for integers alone in the synthesis of EVC, too: its pictures are then the same on every device.
        calibration_crops: pictures of the recipe's crop size.
        rule: "rd" moves every scale while the rate-distortion loss falls; "mse" and "max" are the plain calibrations.
        mixed_bits: what a layer may get: 4 (W4A8), 8 (W8A8), 16 (W8A16); used with one of the next two.
        mixed_threshold: bits per layer, the lowest that alone cost at most this share of the loss.
        mixed_bytes: the same with the smallest threshold at which the weights of these layers fit into so many bytes.
        qat_steps: of training on integers after the calibration; 0 for none.
        qat_learning_rate: peak of those steps; Adam's is scaled alike.
    """

    transforms: str = "all"
    weight_bits: int = 8
    activation_bits: int = 8
    entropy_bits: int | None = None
    entropy_threshold: float | None = None
    exact: bool = False
    calibration_crops: int = 10
    rule: str = "rd"
    mixed_bits: tuple[int, ...] = BITS
    mixed_threshold: float | None = None
    mixed_bytes: int | None = None
    qat_steps: int = 0
    qat_learning_rate: float = 5e-4

    def __post_init__(self) -> None:
        Precision(self.weight_bits, self.activation_bits)
        if self.entropy_bits not in (None, 16):
            raise UsageError(f"entropy_bits={self.entropy_bits!r} (needs 16; leave it out for float entropy networks)")
        if self.exact and self.entropy_bits is None:
            raise UsageError("exact=True needs entropy_bits=16: pictures cannot be exact where symbols are not")
        if self.entropy_threshold is not None and self.entropy_bits is None:
            raise UsageError("entropy_threshold is set, entropy_bits is not (needs entropy_bits=16)")
        if self.rule not in RULES:
            raise UsageError(f"rule={self.rule!r} (needs one of {', '.join(RULES)})")
        if self.calibration_crops < 1:
            raise UsageError(f"calibration_crops={self.calibration_crops} (needs at least 1)")
        if not self.mixed_bits or not set(self.mixed_bits) <= set(BITS):
            raise UsageError(f"mixed_bits={list(self.mixed_bits)} (needs some of {', '.join(map(str, BITS))})")
        if self.mixed_threshold is not None and self.mixed_bytes is not None:
            raise UsageError("mixed_threshold and mixed_bytes are both set (needs one)")
        check_numbers(
            self,
            positive=("mixed_bytes", "qat_learning_rate"),
            from_zero=("entropy_threshold", "mixed_threshold", "qat_steps"),
        )


def run(
    recipe: Recipe,
    settings: Settings,
    model: nn.Module,
    data: Data,
    folder: str | Path,
    load: Callable[[str], nn.Module],
) -> nn.Module:
    """Calibrates, then trains on integers; a run that was cut off goes on where it was.

    Returns:
        The frozen codec in eval mode, with its configuration as the attribute ``quantization``; portable, if
        `entropy_bits` is set.

    Raises:
        UsageError: nothing can be quantised, the settings do not fit, `entropy_bits` is set and the result would not be
            portable, or the folder belongs to another recipe.
    """
    base, left = _precisions(recipe, settings, model)
    folder = Path(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    x = data.batch(CALIBRATION_STEP, settings.calibration_crops).to(next(model.parameters()).device)
    loss = partial(_loss, x=x, lambdas=recipe.lambdas)
    before = loss(model), stored_bytes(model)
    small = _calibrated(recipe, settings, model, base, loss, folder / "calibrated.safetensors")
    calibrated = loss(small)
    if settings.qat_steps:
        training = phase(recipe, steps=settings.qat_steps, learning_rate=settings.qat_learning_rate)
        small = Trainer(training, small.train().requires_grad_(True), data, folder / "qat").run()
    refresh_tables(small)  # a portable codec copies them
    small = freeze(small).eval()
    if settings.entropy_bits is not None:
        small = portable(small)
    report = {
        "loss": before[0],
        "loss_calibrated": calibrated,
        "loss_quantized": loss(small),
        "bytes": before[1],
        "bytes_quantized": stored_bytes(small),
        "largest_accumulator": max(prove_no_overflow(small).values()),
        "float": left,
    }
    logger.info("quantised: %s", report)
    if distributed.rank() == 0:
        path = folder / "quantized.json"
        with writing(path), replacing(path) as partial_file:
            partial_file.write_text(json.dumps(report, indent=1) + "\n")
    return small


def _loss(model: nn.Module, x: Any, lambdas: tuple[float, ...] | None) -> float:
    return calibration_loss(model, x, lambdas)


def _calibrated(
    recipe: Recipe,
    settings: Settings,
    model: nn.Module,
    base: dict[str, Precision],
    loss: Callable[[nn.Module], float],
    path: Path,
) -> nn.Module:
    """The calibrated codec, from `path` if it is there."""
    made_by = json.dumps({**recipe.decisive(), **dataclasses.asdict(settings), "qat_steps": 0, "qat_learning_rate": 0})
    if path.exists():
        try:
            with safe_open(path, "pt") as file:
                metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}
        except (SafetensorError, OSError) as error:
            raise UsageError(f"{path} cannot be read: {error}; remove it to calibrate again") from error
        if (metadata or {}).get("made_by") != made_by:
            raise UsageError(f"{path} was made by another recipe; take another folder")
        precisions = {name: Precision.from_json(bits) for name, bits in json.loads(metadata["precisions"]).items()}
        small = quantize_layers(model, precisions)
        small.load_state_dict(tensors)
        distributed.wait()
        return small.eval()
    steps = partial(tqdm, desc=f"{recipe.model} calibration", unit="layer", disable=distributed.rank() != 0)
    precisions = _mixed(settings, model, base, loss, steps)
    small = post_training(model, precisions, loss, settings.rule, steps)
    if distributed.rank() == 0:
        bits = json.dumps({name: layer.precision.to_json() for name, layer in quantized_layers(small).items()})
        tensors = {key: value.detach().cpu().contiguous() for key, value in small.state_dict().items()}
        write_tensors(path, tensors, {"made_by": made_by, "precisions": bits})
    distributed.wait()
    return small


def _precisions(recipe: Recipe, settings: Settings, model: nn.Module) -> tuple[dict[str, Precision], dict[str, str]]:
    """Bits of each layer before `_mixed`, and why the layers that stay float do."""
    precisions: dict[str, Precision] = {}
    left: dict[str, str] = {}
    plain = Precision(settings.weight_bits, settings.activation_bits)
    only_entropy = settings.transforms == "entropy"
    exact = _exact_layers(settings, model)
    entropy = () if settings.entropy_bits is not None else family_of(model).entropy
    for path in trained_transforms(model, "decoder" if only_entropy else settings.transforms, recipe.trains):
        if path in entropy:
            on_integers = quantized_layers(model.get_submodule(path))
            left[path] = "on integers already" if on_integers else "the entropy networks stay float"
            continue
        names, reasons = find_layers(model, [path], required=False)
        if only_entropy and exact.isdisjoint(names):
            continue
        precisions |= {name: W8A16 if name in exact else plain for name in names}
        left |= reasons
    if missing := sorted({name.split(".")[0] for name in exact - precisions.keys()}):
        raise UsageError(
            f"entropy_bits=16: a portable codec needs {', '.join(missing)} on integers, left out by "
            f"transforms={settings.transforms!r}, trains={recipe.trains}"
        )
    if not precisions:
        raise UsageError(f"transforms={settings.transforms!r}: nothing to quantise ({left})")
    return precisions, left


def _exact_layers(settings: Settings, model: nn.Module) -> frozenset[str]:
    """Paths of the layers that `entropy_bits` puts on integers; none where it is not set."""
    if settings.entropy_bits is None:
        return frozenset()
    if is_video(model):
        raise UsageError(
            "entropy_bits=16: a portable video codec has its whole decoder on integers, which recipes do not make "
            "(sparsecodec encode --stream portable --calibration CLIPS --save-model PATH does, and "
            "quant.portable(model, clips)); without entropy_bits the entropy networks stay float"
        )
    try:
        return frozenset(inexact_layers(model, settings.exact))
    except UsageError as error:
        raise UsageError(f"entropy_bits=16: {error}; without entropy_bits the entropy networks stay float") from error


def _mixed(
    settings: Settings,
    model: nn.Module,
    base: dict[str, Precision],
    loss: Callable[[nn.Module], float],
    progress: Callable[..., Any],
) -> dict[str, Precision]:
    """Bits per layer where asked for; layers of the entropy networks have a threshold of their own."""
    if settings.entropy_threshold is not None:
        dyadic = {name: precision for name, precision in base.items() if precision.dyadic}
        base = base | bytes_where_cheap(model, dyadic, loss, settings.entropy_threshold, progress)
    if settings.mixed_threshold is None and settings.mixed_bytes is None:
        return base
    searched = {name: precision for name, precision in base.items() if not precision.dyadic}
    found = sensitivities(model, searched, loss, settings.mixed_bits, progress)
    if settings.mixed_bytes is None:
        plan = plan_for_threshold(found, settings.mixed_threshold)
    else:
        plan = plan_for_bytes(found, settings.mixed_bytes)
    logger.info("bits: %s", dataclasses.asdict(plan))
    return base | found.to_precisions(plan.bits)
