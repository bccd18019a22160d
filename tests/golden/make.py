"""What golden streams are made of: numbers that follow from integers alone, on every machine and in every release."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from sparsecodec._compat import import_compressai
from sparsecodec.models import EVC
from sparsecodec.models.dcvc import DCVC
from sparsecodec.models.dcvc import Widths as DCVCWidths
from sparsecodec.models.dcvc_hem_image import DCVCHEMImage, HEMImageWidths
from sparsecodec.models.dcvc_hem_video import DCVCHEMVideo, HEMVideoWidths
from sparsecodec.models.dcvc_rt_image import DCVCRTImage, RTImageWidths
from sparsecodec.models.dcvc_rt_video import DCVCRTVideo, RTVideoWidths
from sparsecodec.models.description import from_description
from sparsecodec.models.fvc import FVC
from sparsecodec.models.fvc import Widths as FVCWidths
from sparsecodec.models.video import VideoCodec
from sparsecodec.quant import W8A16, portable
from sparsecodec.quant.tables import NEVER


def integers(count: int, seed: int) -> np.ndarray:
    """`count` uint64 from splitmix64."""
    with np.errstate(over="ignore"):
        z = (np.arange(1, count + 1, dtype=np.uint64) + np.uint64(seed << 20)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def picture(height: int, width: int, seed: int) -> np.ndarray:
    """``[1, 3, height, width]`` float32, multiples of 1/256 in [0, 1): ramps, edges and some noise."""
    y, x = np.mgrid[:height, :width]
    noise = (integers(height * width, seed) & np.uint64(15)).astype(np.int64).reshape(height, width)
    planes = [3 * y + 2 * x + noise, (x // 9 + y // 7) % 2 * 140 + noise + y, 200 - 2 * x + noise * (x // 16 % 2)]
    return (np.stack(planes) & 255)[None].astype(np.float32) / 256


def moving(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """``[frames, 3, height, width]``: a window that moves over a `picture`, three pixels right and two down a frame."""
    large = picture(height + 2 * frames, width + 3 * frames, seed)[0]
    return np.stack([large[:, 2 * t : 2 * t + height, 3 * t : 3 * t + width] for t in range(frames)])


def integer_rows(rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tables by whole numbers alone: row r has 2 (r + 1) + 1 symbols around zero, falling off to both sides."""
    width = 2 * rows + 3
    cdf, lengths, offsets = np.zeros((rows, width), np.int32), np.empty(rows, np.int32), np.empty(rows, np.int32)
    for r in range(rows):
        reach = r + 1
        weights = [(reach + 1 - abs(i)) ** 2 for i in range(-reach, reach + 1)]
        total = sum(weights)
        frequencies = [1 + 65000 * weight // total for weight in weights]
        frequencies.append(65536 - sum(frequencies))
        lengths[r], offsets[r] = len(frequencies) + 1, -reach
        cdf[r, 1 : lengths[r]] = np.cumsum(frequencies)
    return cdf, lengths, offsets


def seeded(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A weight of a model, from its name: what trained ones look like to the coder, roughly.

    Floating point: uniform, multiples of 2^-15 times a power of two. Integers in the layers of the entropy networks.
    """
    if name.endswith(".mask"):
        return tensor  # of a context model: which positions are seen
    random = integers(tensor.numel(), zlib.crc32(name.encode()))
    if name.endswith(".weight_scale"):
        mantissas = ((random >> np.uint64(51)) + np.uint64(1 << 14)).astype(np.float64)  # 2^14 to 2^15 - 1
        values = mantissas * 2.0**-27
    elif name.endswith(".input_scale"):
        values = np.full(tensor.numel(), 2.0**-8)
    elif name.endswith((".input_low", ".input_high")):
        values = np.full(tensor.numel(), -32768 if name.endswith("low") else 32767)
    elif tensor.dtype == torch.int8:
        values = (random >> np.uint64(58)).astype(np.int64) - 31
    elif not tensor.is_floating_point():
        values = (random >> np.uint64(48)).astype(np.int64) - 32768
    elif name == "q_scale":  # of EVC, from the coarsest rate to the finest
        values = np.array([2.0, 1.5, 1.0, 0.75])
    elif ".q_" in name:  # of DCVC-RT: a row of factors for each quality, 1/2 to 3/2
        values = 0.5 + (random >> np.uint64(52)).astype(np.float64) * 2.0**-12
    elif name == "Gain":  # of a variable rate, from the coarsest to the finest
        values = (1 + np.arange(tensor.numel())) / 4
    elif name == "q_basic":
        values = 16 + (random >> np.uint64(60)).astype(np.float64)
    elif tensor.ndim >= 2 and tensor.numel() > tensor.shape[0]:
        steps = (random >> np.uint64(48)).astype(np.float64) - 32768
        values = steps * 2.0 ** (-14 - round(np.log2(tensor[0].numel()) / 2))
    elif name.endswith(("bound", "pedestal")):
        return tensor  # constants of CompressAI's layers
    else:  # biases and the like around 0; what has to be positive around 1
        base = 1 if name.endswith(("beta", "scale_table")) else 0
        values = base + ((random >> np.uint64(48)).astype(np.float64) - 32768) * 2.0**-18
    return torch.from_numpy(values.astype(np.float64)).view_as(tensor).to(tensor.dtype)


COMPRESSAI = {
    "bmshj2018-factorized": ("FactorizedPrior", {"N": 8, "M": 12}),
    "bmshj2018-hyperprior": ("ScaleHyperprior", {"N": 8, "M": 12}),
    "mbt2018-mean": ("MeanScaleHyperprior", {"N": 8, "M": 12}),
}
NATIVE = {
    **COMPRESSAI,
    "bmshj2018-factorized-relu": ("FactorizedPriorReLU", {"N": 8, "M": 12}),
    "mbt2018": ("JointAutoregressiveHierarchicalPriors", {"N": 8, "M": 12}),
    "cheng2020-anchor": ("Cheng2020Anchor", {"N": 8}),
    "cheng2020-attn": ("Cheng2020Attention", {"N": 8}),
}
VARIABLE = {
    "bmshj2018-hyperprior-vbr": ("ScaleHyperpriorVbr", {"N": 8, "M": 12}),
    "mbt2018-mean-vbr": ("MeanScaleHyperpriorVbr", {"N": 8, "M": 12}),
    "mbt2018-vbr": ("JointAutoregressiveHierarchicalPriorsVbr", {"N": 8, "M": 12}),
}
SCALES = 40  # rows of a Gaussian conditional
LOUDER = 2.0**3  # what an analysis's last layer is multiplied by, so that the latent fills several symbols


def portable_model(name: str) -> nn.Module:
    """A portable codec whose every weight and table is `seeded`: nothing is calibrated, and no random generator asked.

    Args:
        name: ``evc-nano``, a key of `COMPRESSAI`, or one of `VARIABLE` that is not of a context model.
    """
    with torch.random.fork_rng(devices=[]):
        if name in (known := {**COMPRESSAI, **VARIABLE}):
            family, arguments = known[name]
            model = getattr(import_compressai().models, family)(**arguments)
            model.update()
        else:
            model = from_description({"family": "evc", "encoder": "nano", "decoder": "nano"})
        x = torch.from_numpy(picture(64, 64, seed=0))
        model = portable(model, x)
    tensors = {key: seeded(key, value) for key, value in model.state_dict().items()}
    rows = len(tensors["portable.z_lengths"])
    tables = dict(zip(("z_cdf", "z_lengths", "z_offsets"), map(torch.from_numpy, integer_rows(rows)), strict=True))
    tensors |= {f"portable.{key}": value for key, value in tables.items()}
    tensors["portable.z_medians"] = torch.arange(rows, dtype=torch.int32) * 997 - 3000
    rates, steps = model.portable.thresholds.shape[:-1], model.portable.thresholds.shape[-1]
    tensors["portable.thresholds"] = torch.arange(1, steps + 1, dtype=torch.int32) * 12000
    if rates:  # scales and means of some size, thresholds that fall with the rate, so that each has rows of its own
        tensors["h_s.4.weight_scale"] *= 2.0**6
        tensors["g_a.6.weight"] *= LOUDER
        tensors["portable.thresholds"] = tensors["portable.thresholds"] // 20 * torch.arange(9, 1, -1).int()[:, None]
    return _filled(model, tensors)


def portable_video() -> nn.Module:
    """A portable DCVC-RT as `portable_model` makes its codecs; activations neither die away nor run over."""
    with torch.random.fork_rng(devices=[]):
        intra = DCVCRTImage(RTImageWidths(16, 8, 24, 1, 1, fusion_blocks=1, spatial_blocks=1))
        inter = DCVCRTVideo(RTVideoWidths(16, 8, 24, 16, shared_blocks=1, context_blocks=1, recon_blocks=1))
        model = portable(VideoCodec(intra, inter), [torch.from_numpy(moving(3, 64, 64))], W8A16)
    tensors = _video_tensors(model)
    last = f"enc.enc_2.{len(intra.enc.enc_2) - 1}"
    for half, layer, gain, exponents in (("intra", last, 2.0, [-10]), ("inter", "encoder.down", 0.5, [-12, -11])):
        tensors[f"{half}.{layer}.weight"] *= gain  # so that the latent fills several symbols
        steps = torch.arange(1, len(model.get_submodule(half).portable.thresholds), dtype=torch.int32) * 3000
        tensors[f"{half}.portable.thresholds"] = torch.cat([torch.tensor([NEVER], dtype=torch.int32), steps])
        tensors[f"{half}.portable.exponents"] = torch.tensor(exponents, dtype=torch.int32)
    return _filled(model, tensors)


def portable_hem() -> nn.Module:
    """As `portable_video`, a portable DCVC-HEM."""
    with torch.random.fork_rng(devices=[]):
        intra = DCVCHEMImage(HEMImageWidths(16, 8, (8, 8, 16), 16))
        inter = DCVCHEMVideo(HEMVideoWidths(8, 8, 16, 8, (8, 8, 16), (8, 8, 8, 8)))
        model = portable(VideoCodec(intra, inter), [torch.from_numpy(moving(3, 64, 64))], W8A16)
    tensors = _video_tensors(model)
    for half, basics in (("intra", ("q_basic",)), ("inter", ("mv_y_q_basic", "y_q_basic"))):
        for name in basics:
            tensors[f"{half}.{name}"] = 0.75 + torch.arange(tensors[f"{half}.{name}"].numel()).view(1, -1, 1, 1) / 16
        tensors[f"{half}.portable.z_medians"] *= 0
        thresholds = len(model.get_submodule(half).portable.thresholds)
        tensors[f"{half}.portable.thresholds"] = torch.arange(1, thresholds + 1, dtype=torch.int32) * 3000
        steps = torch.arange(64, 0, -1, dtype=torch.int32)[:, None].expand(-1, len(basics))
        tensors[f"{half}.portable.steps"] = steps * torch.tensor([2, 3][: len(basics)], dtype=torch.int32)
    tensors["inter.mv_encoder.6.weight"] /= 8
    tensors["inter.mv_decoder.7.0.weight_scale"] *= 32  # so that the motion is of some pixels
    for key in [key for key in tensors if key.endswith(".bias") and tensors[key].dtype == torch.int32]:
        tensors[key] >>= 3  # through as many layers little else would be left
    _grey(tensors, "intra.refine.1", "inter.recon_generation_net.recon_conv")
    return _filled(model, tensors)


def portable_dcvc() -> nn.Module:
    """As `portable_video`, a portable DCVC of 2021 behind EVC."""
    model, tensors = _behind_evc(lambda: DCVC(DCVCWidths(12, 10, 14, 8, (8, 8, 8, 8))))
    for key in [key.removesuffix("mask") for key in tensors if key.endswith(".mask")]:
        tensors[f"{key}weight"] *= tensors[f"{key}mask"].to(torch.int8)
    for key in [key.removesuffix("_scale") for key in tensors if key.endswith(".gamma_scale")]:
        tensors[f"{key}_scale"] = torch.full_like(tensors[f"{key}_scale"], 2.0**-20)
        tensors[key] = (tensors[key] + 32768) // 4
        beta = f"{key.removesuffix('gamma')}beta"
        tensors[beta] = (tensors[beta] + 65536) << 20  # 1/2 to 3/2, where inputs are in units of 2^-8
    _grey(tensors, "intra.dec.7.0", "inter.contextualDecoder_part2.3")
    return _filled(model, tensors)


def portable_fvc() -> nn.Module:
    """As `portable_video`, a portable FVC behind EVC, with weighed taps and three frames that are fused."""
    widths = FVCWidths(12, 10, 12, 2, 1, modulated=True, references=2)
    model, tensors = _behind_evc(lambda: FVC(widths))
    for key in [key for key in tensors if key.endswith("offsets.weight_scale")]:
        tensors[key] *= 64  # so that samples are of other pixels
    _grey(tensors, "intra.dec.7.0", f"inter.reconstruction.{widths.blocks}")
    return _filled(model, tensors)


def _behind_evc(inter: Callable[[], nn.Module]) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A portable codec of an inter model behind EVC, and what is to be filled in."""
    with torch.random.fork_rng(devices=[]):
        codec = VideoCodec(EVC("nano", "nano"), inter())
        model = portable(codec, [torch.from_numpy(moving(3, 64, 64))], W8A16)
    tensors = _video_tensors(model)
    tensors["intra.q_basic"] = 0.75 + torch.arange(tensors["intra.q_basic"].numel()).view(1, -1, 1, 1) / 64
    tensors["intra.portable.steps"] = torch.arange(64, 0, -1, dtype=torch.int32)[:, None] * 2
    for half in ("intra", "inter"):
        tensors[f"{half}.portable.z_medians"] *= 0
        thresholds = len(model.get_submodule(half).portable.thresholds)
        tensors[f"{half}.portable.thresholds"] = torch.arange(1, thresholds + 1, dtype=torch.int32) * 3000
    for key in [key for key in tensors if key.endswith(".bias") and tensors[key].dtype == torch.int32]:
        tensors[key] >>= 3  # through as many layers little else would be left
    tensors["intra.enc.6.weight"] /= 128  # latents of several symbols
    return model, tensors


def _grey(tensors: dict[str, torch.Tensor], *last: str) -> None:
    """Moves the pictures of these layers around a half, of some contrast, in place."""
    for layer in last:
        tensors[f"{layer}.weight_scale"] *= 8
        unit = tensors[f"{layer}.weight_scale"].double() * tensors[f"{layer}.input_scale"]
        tensors[f"{layer}.bias"] = (0.5 / unit).round().to(torch.int32)


def _video_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """What `seeded` gives, with activations that neither die away nor run over, and rows for the hyper-latents."""
    tensors = {key: seeded(key, value) for key, value in model.state_dict().items()}
    for key in [key for key in tensors if key.endswith(".weight_scale")]:
        fan_in = tensors[f"{key.removesuffix('_scale')}"][0].numel()
        tensors[key] *= 2.0 ** (7 - round(np.log2(fan_in) / 2))  # 18 of 127 is the mean of a byte's magnitude
    for half in ("intra", "inter"):
        rows = len(tensors[f"{half}.portable.z_lengths"])
        tables = (np.resize(table, (rows, *table.shape[1:])) for table in integer_rows(8))
        names = ("z_cdf", "z_lengths", "z_offsets")
        tensors |= {f"{half}.portable.{key}": torch.from_numpy(of) for key, of in zip(names, tables, strict=True)}
    return tensors


def native_model(name: str) -> nn.Module:
    """A codec of CompressAI's whose every weight and table is `seeded`; its own `update`, in floating point, never ran.

    Args:
        name: a key of `NATIVE` or `VARIABLE`.
    """
    family, arguments = {**NATIVE, **VARIABLE}[name]
    with torch.random.fork_rng(devices=[]):
        model = getattr(import_compressai().models, family)(**arguments)
    tensors = {key: seeded(key, value) for key, value in model.state_dict().items()}
    last = [key for key, layer in model.g_a.named_modules() if isinstance(layer, nn.Conv2d)][-1]
    tensors[f"g_a.{last}.weight"] *= LOUDER
    owner = "gaussian_conditional"
    if hasattr(model, owner):
        steps = [(4 + i % 4) * 2.0 ** (i // 4 - 5) for i in range(SCALES)]  # 1/8 and up, four to each power of two
        tensors[f"{owner}.scale_table"] = torch.tensor(steps)
        tensors[f"{owner}._cdf_length"] = torch.empty(SCALES, dtype=torch.int32)
    tensors["entropy_bottleneck._cdf_length"] = torch.empty(model.entropy_bottleneck.channels, dtype=torch.int32)
    return _filled(model, tensors)


def _filled(model: nn.Module, tensors: dict[str, torch.Tensor]) -> nn.Module:
    """`model` with these weights, and the tables of CompressAI's entropy models from `integer_rows`."""
    for key in [key for key in tensors if key.endswith("._cdf_length")]:
        owner = key.removesuffix("_cdf_length")
        of = map(torch.from_numpy, integer_rows(len(tensors[key])))
        tensors |= dict(zip((f"{owner}_quantized_cdf", key, f"{owner}_offset"), of, strict=True))
    _resize(model, tensors)
    model.load_state_dict(tensors)
    return model.eval()


def _resize(model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Gives buffers the shapes of the tables that are about to be loaded."""
    for key, buffer in model.named_buffers():
        if key in tensors and buffer.shape != tensors[key].shape:
            owner, _, leaf = key.rpartition(".")
            setattr(model.get_submodule(owner), leaf, tensors[key].clone())
