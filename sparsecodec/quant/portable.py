"""Portable codecs: the networks that choose entropy tables on dyadic integers, their tables stored beside them."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from statistics import fmean

import torch
from torch import Tensor, nn

from sparsecodec.entropy import EntropyTables
from sparsecodec.errors import UsageError
from sparsecodec.nn import factorized_tables
from sparsecodec.ops import evc_scale_thresholds, scale_table_thresholds
from sparsecodec.quant.calibration import correct_biases, observe, set_scales
from sparsecodec.quant.mixed import bytes_where_cheap
from sparsecodec.quant.model import find_layers, freeze, quantize_layers, quantized_layers
from sparsecodec.quant.portable_video import float_layers, is_portable_video, is_video, portable_video
from sparsecodec.quant.precision import Precision
from sparsecodec.quant.tables import IntegerTables, empty_tables

W8A8, W8A16, W16A16 = Precision(8, 8, dyadic=True), Precision(8, 16, dyadic=True), Precision(16, 16, dyadic=True)
STRIDE = 64  # the least picture, and the multiple that every family takes
EVC = ("hyper_dec", "y_prior_fusion", "y_spatial_prior")
SYNTHESIS = ("dec",)  # of EVC


def entropy_networks(model: nn.Module) -> tuple[str, ...]:
    """Paths of the networks between the hyper-latent and the tables.

    Raises:
        UsageError: a family without a portable form; CompressAI's codecs with a context model or a step of the
            hyper-latent that follows from the rate have none. Or a gain of zero.
    """
    if hasattr(model, "context_prediction"):
        raise UsageError(
            f"{type(model).__name__} decodes position by position: it has no portable stream (use stream='native')"
        )
    if hasattr(model, "gayn2zqstep"):
        raise UsageError(
            f"{type(model).__name__} with vr_entbttlnck=True computes the step of its hyper-latent from the rate of a "
            f"picture: it has no portable stream (use stream='native')"
        )
    if hasattr(model, "Gain") and not bool((model.Gain != 0).all()):
        raise UsageError(f"{type(model).__name__}: Gain={model.Gain.tolist()} (a rate needs one that is not 0)")
    if all(hasattr(model, path) for path in (*EVC, "q_basic", "bit_estimator_z")) and not hasattr(model, "refine"):
        return EVC  # the image codec of DCVC-HEM has these names, too, and a network behind its synthesis
    if hasattr(model, "h_s") and hasattr(model, "gaussian_conditional"):
        return ("h_s",)
    if hasattr(model, "entropy_bottleneck"):
        return ()
    raise UsageError(
        f"{type(getattr(model, 'inter', model)).__name__} has no portable stream (EVC, CompressAI's without a context "
        "model, and in one VideoCodec the two models of DCVC-RT or DCVC-HEM, or EVC and DCVC of 2021 or FVC, have)"
    )


def check_form(model: nn.Module) -> None:
    """Raises a UsageError for a codec without a portable form, as `entropy_networks`."""
    if not is_video(model):
        entropy_networks(model)


def is_portable(model: nn.Module) -> bool:
    """Whether `model` stores its integer tables and holds dyadic integers in all networks that have to be exact.

    Of a picture codec those between bytes and symbols, of a video codec all that a decoder computes.
    """
    if is_video(model):
        return is_portable_video(model)
    return isinstance(getattr(model, "portable", None), IntegerTables) and on_dyadic_integers(model)


def is_exact(model: nn.Module) -> bool:
    """Whether a portable codec's pictures are the same on every device: its synthesis holds dyadic integers, too."""
    if is_video(model):
        return is_portable_video(model)
    try:
        return is_portable(model) and not inexact_layers(model, exact=True)
    except UsageError:
        return False


def on_dyadic_integers(model: nn.Module) -> bool:
    """Whether `portable` takes `model` without pictures: its family has portable streams, and no layer is float."""
    try:
        return not (float_layers(model) if is_video(model) else inexact_layers(model))
    except UsageError:
        return False


def portable(
    model: nn.Module,
    images: Tensor | Sequence[Tensor] | None = None,
    precision: Precision | None = None,
    exact: bool = False,
    threshold: float | None = None,
) -> nn.Module:
    """A copy of a codec that can write portable streams.

    Layers of the entropy networks that are float are calibrated on `images` and frozen; dyadic ones stay as they are.
    With `exact` so are those of the synthesis: then not only the symbols but the pictures are the same on every device.
    Another machine may calibrate to other integers, so the copy, not the float codec, is what has to be kept: save it.

    Args:
        model: EVC, or CompressAI's without a context model; dense, compact or quantised. Or a video codec
            of DCVC-RT's or DCVC-HEM's models, or of EVC and DCVC (2021) or FVC: see `portable_video` for what `images`
            are then, and what else it raises.
        images: ``[N, 3, H, W]`` floating point in [0, 1], at least 64 x 64, or a sequence of ``[3, H, W]`` or
            ``[1, 3, H, W]``; a few crops of photos that the codec is meant for. Not needed if no layer is float.
        precision: bits of weights and activations of those layers, dyadic: `W8A8`, `W8A16` or `W16A16`. Default:
            `W8A16`; of a video codec, whose frames hand on what weights lose, `W16A16`: larger on disk, as fast on a
            CPU, twice the products on a GPU.
        exact: pictures, too. EVC; a video codec's always are.
        threshold: of a picture codec's layers those take inputs of 8 bits that alone cost at most this share of bits
            times squared error, for speed where processors multiply bytes; None: none. With `W8A16` only.

    Returns:
        The copy, in eval mode, with the submodule ``portable`` (`IntegerTables`) and the attribute ``quantization``.

    Raises:
        UsageError: no portable form, a weight that is not finite, a layer on other integers, or images that are
            missing, of a wrong shape, dtype or range, or too small.
    """
    video = is_video(model)
    precision = precision or (W16A16 if video else W8A16)
    if not isinstance(precision, Precision):
        raise UsageError(f"precision={precision!r} (needs a Precision, such as W8A16)")
    if not precision.dyadic:
        raise UsageError(f"precision={precision} (needs dyadic=True)")
    if threshold is not None and not (math.isfinite(threshold) and precision == W8A16):
        raise UsageError(f"threshold={threshold}, precision={precision} (needs a finite number, and W8A16)")
    names = [] if video else inexact_layers(model, exact)
    for key, value in model.state_dict().items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise UsageError(f"{key} is not finite")
    if video and threshold is not None:
        raise UsageError(f"threshold={threshold} (is for codecs of pictures)")
    if video:
        return portable_video(model, images, precision)
    model = _with_tables(copy.deepcopy(model).eval())
    if names:
        if images is None:
            raise UsageError(f"{len(names)} layers of the entropy networks are float: give calibration images")
        model = _calibrated(model, names, _pictures(images), precision, exact, threshold)
    model.portable = _integer_tables(model)
    return freeze(model).requires_grad_(False)


def inexact_layers(model: nn.Module, exact: bool = False) -> list[str]:
    """Layers of a picture codec's entropy networks, and with `exact` of its synthesis, that are yet to be quantised.

    Raises:
        UsageError: no portable form, a layer is on other integers, or there is no integer rule for one.
    """
    networks = entropy_networks(model)
    if exact and networks != EVC:
        raise UsageError(f"{type(model).__name__} has no form with exact pictures (EVC has, and video codecs)")
    networks += SYNTHESIS if exact else ()
    on_integers = quantized_layers(model)
    for name, layer in on_integers.items():
        if name.split(".")[0] in networks and not (layer.precision.dyadic and layer.frozen):
            raise UsageError(f"{name} is quantised, but not to frozen dyadic integers: start from the float codec")
    found, left = find_layers(model, networks, required=False) if networks else ([], {})
    reasons = {name: reason for name, reason in left.items() if name not in on_integers}
    if reasons:
        raise UsageError(f"no integer rule for {reasons}")
    return [name for name in found if name not in on_integers]


def _with_tables(model: nn.Module) -> nn.Module:
    """`model`; CompressAI's with its tables, which ``update()`` makes."""
    coders = [part for part in model.children() if hasattr(part, "_quantized_cdf")]
    if not all(part._offset.numel() for part in coders):
        model.update()
    return model


def _integer_tables(model: nn.Module) -> IntegerTables:
    """The stored ones, or those of the float parts."""
    if hasattr(model, "portable"):
        return model.portable
    tables = empty_tables(model)
    if hasattr(model, "bit_estimator_z"):
        channels = model.q_basic.shape[1]
        tables.fill(factorized_tables(model.bit_estimator_z, channels), torch.zeros(channels), evc_scale_thresholds())
        return tables
    coder = model.entropy_bottleneck
    rows = EntropyTables(coder._quantized_cdf, coder._cdf_length, coder._offset)
    thresholds = torch.zeros(0)
    if hasattr(model, "gaussian_conditional"):
        conditional = model.gaussian_conditional
        thresholds = scale_table_thresholds(conditional.scale_table, float(conditional.lower_bound_scale.bound))
        if hasattr(model, "Gain"):  # scale * gain > threshold
            thresholds = thresholds.double() / model.Gain.detach().abs().double()[:, None]
    tables.fill(rows, coder.quantiles[:, 0, 1], thresholds)
    return tables


def _pictures(images: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """Checked pictures, each ``[N, 3, H, W]`` float32, cut to multiples of the stride."""
    if not isinstance(images, Iterable):
        raise UsageError(f"calibration: {type(images).__name__} (needs a tensor or a sequence of them)")
    pictures = [images] if isinstance(images, Tensor) else list(images)
    if not pictures:
        raise UsageError("calibration: no image")
    checked = []
    for index, x in enumerate(pictures):
        where = f"calibration image {index}" if len(pictures) > 1 else "calibration images"
        if not isinstance(x, Tensor):
            raise UsageError(f"{where}: {type(x).__name__} (needs a tensor)")
        x = x[None] if x.ndim == 3 else x
        if x.ndim != 4 or x.shape[1] != 3 or len(x) == 0:
            raise UsageError(f"{where}: shape {tuple(x.shape)} (needs [N, 3, H, W])")
        if not x.is_floating_point():
            raise UsageError(f"{where}: {x.dtype} (needs floating point in [0, 1]; divide by 255)")
        if min(x.shape[2:]) < STRIDE:
            raise UsageError(f"{where}: {x.shape[2]} x {x.shape[3]} (needs at least {STRIDE} x {STRIDE})")
        low, high = float(x.min()), float(x.max())
        if not (low >= 0 and high <= 1):  # also false for NaN
            raise UsageError(f"{where}: values in [{low:g}, {high:g}] (needs [0, 1], no NaN)")
        checked.append(x[:, :, : x.shape[2] // STRIDE * STRIDE, : x.shape[3] // STRIDE * STRIDE].float())
    return checked


def _calibrated(
    model: nn.Module,
    names: list[str],
    pictures: list[Tensor],
    precision: Precision,
    exact: bool,
    threshold: float | None,
) -> nn.Module:
    """`model` with those layers on integers, not yet frozen."""

    def run(codec: nn.Module) -> float:
        plain = not exact and threshold is None
        return _bits(codec, pictures) if plain else _bits_times_error(codec, pictures)

    with torch.no_grad():
        precisions = dict.fromkeys(names, precision)
        if threshold is not None:
            precisions |= bytes_where_cheap(model, precisions, run, threshold)
        small = quantize_layers(model, precisions)
        observations = observe(model, names, run)
        set_scales(small, observations)
        corrected = copy.deepcopy(small)
        correct_biases(corrected, model, run)
        return corrected if run(corrected) < run(small) else small


def _bits(model: nn.Module, pictures: list[Tensor]) -> float:
    """Bits that the pictures take, at all rates of the codec."""
    return sum(_bits_of(x, out) for x, out in _coded(model, pictures))


def _bits_times_error(model: nn.Module, pictures: list[Tensor]) -> float:
    """The geometric mean over pictures and rates of bits times mean squared error."""
    logarithms = []
    for x, out in _coded(model, pictures):
        error = float((out["x_hat"] - x).square().mean())
        logarithms.append(math.log2(max(_bits_of(x, out), 1e-9)) + math.log2(max(error, 2.0**-40)))
    return 2 ** fmean(logarithms)


def _bits_of(x: Tensor, out: dict[str, Tensor]) -> float:
    if "bpp" in out:
        return float(out["bpp"].sum()) * x[0, 0].numel()
    return -sum(float(likelihoods.log2().sum()) for likelihoods in out["likelihoods"].values())


@torch.no_grad()
def _coded(model: nn.Module, pictures: list[Tensor]) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Each picture, on the model's device, and what the model says of it, at each of its rates.

    A codec with a gain per rate does without: no entropy network reads what was multiplied by it.
    """
    device = next(model.parameters()).device
    rates = [(step,) for step in model.q_scale] if hasattr(model, "q_scale") else [()]
    if hasattr(model, "Gain"):
        rates = [(1,)]  # the stage without gains
    for x in pictures:
        x = x.to(device)
        for rate in rates:
            yield x, model(x, *rate)
