"""FEDS: a light student learns the features of a larger teacher, and its most informative latent channels.

After arXiv 2503.06399, of which the abstract alone is public: losses, layers and weights are this project's own reading
(feature alignment, then channels by entropy, then fine-tuning, which is plain training).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecodec.distill.observing import COMPRESSAI_CODERS, Forward, Pass, Stage, observe, stages_of
from sparsecodec.errors import UsageError
from sparsecodec.nn.fingerprint import model_hash
from sparsecodec.nn.likelihood import LAPLACE_SCALE_MIN, SCALE_MIN, Latent

ENTROPY_LOSSES = ("mse", "kl")
ANALYSES = {  # transforms that return a latent, and its name
    **dict.fromkeys(
        ("enc", "g_a", "encoder", "contextual_encoder", "contextualEncoder", "residual_codec.analysis"), "y"
    ),
    **dict.fromkeys(("mv_encoder", "mvEncoder", "motion_codec.analysis"), "mv_y"),
}


def channel_divergence(student: Latent, teacher: Latent) -> Tensor:
    """KL(p_T || p_S) of each channel: nats, the mean over pictures and positions.

    It is what coding the teacher's latent with the student's tables costs more than with its own. Scales of Gaussians
    below 0.11 count as 0.11, those of Laplace distributions below 1e-5 as 1e-5, as in the likelihood.

    Args:
        student, teacher: of as many channels; both of Gaussians or both of Laplace distributions.

    Returns:
        ``[C]`` float32, 0 or more.
    """
    least = LAPLACE_SCALE_MIN if teacher.laplace else SCALE_MIN
    s, t = student.scales.clamp(min=least), teacher.scales.clamp(min=least)
    apart = teacher.means - student.means
    if teacher.laplace:
        distance = (t * (-apart.abs() / t).exp() + apart.abs()) / s - 1
    else:
        distance = (t.square() + apart.square()) / (2 * s.square()) - 0.5
    return ((s / t).log() + distance).mean((0, 2, 3))


class Channels(nn.Module):
    """Which channels of a latent of the teacher the student follows, and how much each counts.

    Args:
        entropies: ``[C]`` float64, bits a position of each channel of the teacher.
        width: K, channels of the student's latent, C or less.
    """

    entropies: Tensor  # [C] float64
    pairing: Tensor  # [K] int64, increasing

    def __init__(self, entropies: Tensor, width: int) -> None:
        super().__init__()
        self.register_buffer("entropies", entropies)
        self.register_buffer("pairing", entropies.sort(descending=True, stable=True).indices[:width].sort().values)

    @property
    def weights(self) -> Tensor:
        """``[K]`` float32, sum 1: share of each paired channel in the entropy of all paired channels."""
        paired = self.entropies[self.pairing]
        return (paired / paired.sum()).float()


class FEDS(nn.Module):
    """What a student's forward is compared with, and the two distances.

    feature loss = sum over the ends l of stages of mean (A_l(f_l^S) - sg f_l^T)^2
    channel loss = sum over c in Omega of w_c mean (y_c^S - sg y_c^T)^2,    w_c = H_c / sum over Omega of H
    H_c = E[-log2 p_T(y_hat_c | context)]: bits a position that the teacher's entropy model needs, on a calibration set

    Omega are the K channels of the teacher with the largest H_c, K the width of the student's latent, in the order in
    which the teacher has them: channel k of the student follows channel ``pairing[k]``. It is fixed here, once. A codec
    that codes motion has a second latent, whose loss is added. The A_l are 1x1 convolutions that belong to this module
    and so never to the student; where widths agree they start as the identity, at a latent as the embedding of the
    student's channels into the teacher's, else as an orthogonal matrix. What runs several times, as in a clip, counts
    with the mean over its calls.

    The teacher's layers stay in eval mode and never get a gradient. What quantises follows the student's mode, and the
    random numbers of the student's forward are drawn again for the teacher's: in training, where CompressAI's codecs
    replace rounding by noise, both see the same noise and the same rates, if their latents have one width. EVC and the
    DCVC family round what their networks read in both modes; noise enters their rate alone. Each codec predicts the
    frames of a clip from its own.

    State dict: adapters, entropies, pairing, and the identity of the teacher.

    Args:
        student: not modified.
        teacher: of the same family, with as many latent channels or more; put into eval mode, without gradients.
        forward: ``(model, x) -> (out, rates)``, for both. ``out["latents"]``: each `Latent` by name, if CompressAI's
            entropy models are not what codes them.
        transforms: paths of those whose stages are aligned. A latent counts if one of them is of its half of a video
            codec.
        batches: calibration set, each ``[N, 3, H, W]`` or ``[N, T, 3, H, W]`` float32 in [0, 1].
        entropy_loss: "mse" as above, or "kl": w_c * `channel_divergence` in place of the squared difference.

    Raises:
        UsageError: the two codecs do not fit, the calibration set is empty or costs the teacher no bits, or
            `entropy_loss` is unknown or asks for distributions that the entropy models do not predict.
    """

    teacher_hash: Tensor  # [32] uint8

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        forward: Forward,
        transforms: Sequence[str],
        batches: Iterable[Tensor],
        entropy_loss: str = "mse",
    ) -> None:
        super().__init__()
        if entropy_loss not in ENTROPY_LOSSES:
            raise UsageError(f"entropy_loss={entropy_loss!r} (needs one of {', '.join(ENTROPY_LOSSES)})")
        self.entropy_loss = entropy_loss
        self._forward, self._transforms = forward, tuple(transforms)
        teacher.eval().requires_grad_(False)
        self._teacher = (teacher,)  # a tuple: its weights are no part of this module
        batches = list(batches)
        if not batches:
            raise UsageError("the calibration set is empty (needs at least one batch)")
        probe = batches[0][:1]
        with torch.random.fork_rng(_generators(probe)):
            self.stages = _paired(*(stages_of(forward, model, probe, transforms) for model in (student, teacher)))
            with torch.no_grad():
                ours = observe(forward, student, probe, ()).latents
        self.channels = nn.ModuleDict(self._calibrated(batches, {name: ours[name].y.shape[1] for name in ours}))
        self.register_buffer("teacher_hash", torch.tensor(list(model_hash(teacher)), dtype=torch.uint8))
        self.register_load_state_dict_pre_hook(_same_teacher)
        self.adapters = self._new_adapters().to(batches[0].device)
        self._passes: tuple[Pass, Pass] | None = None

    def forward(self, model: nn.Module, x: Tensor) -> tuple[dict[str, Any], Tensor]:
        """Runs the teacher and then the student; the losses are those of the last call.

        Args:
            model: the student, or a later state of it.
            x: as a batch of the calibration set.

        Returns:
            What ``forward(model, x)`` returns; the random numbers drawn are those of the student's forward alone.
        """
        self._passes = None
        with torch.random.fork_rng(_generators(x)):  # undoes the teacher's draws: the student repeats them
            with torch.no_grad(), self._quantising_like(model):
                teacher = observe(self._forward, self._teacher[0], x, [theirs.path for _, theirs in self.stages])
        student = observe(self._forward, model, x, [ours.path for ours, _ in self.stages])
        self._passes = student, teacher
        return student.out, student.rates

    def feature_loss(self) -> Tensor:
        """The distance of the features of the last forward; a scalar, 0 or more."""
        student, teacher = self._last()
        losses = []
        for adapter, (ours, theirs) in zip(self.adapters, self.stages, strict=True):
            pairs = zip(student.calls.get(ours.path, ()), teacher.calls.get(theirs.path, ()), strict=True)
            features = [(mine[ours.index].float(), his[theirs.index].float()) for mine, his in pairs]
            if features:  # what reads a feature may have rested in this clip
                losses.append(torch.stack([F.mse_loss(adapter(mine), his) for mine, his in features]).mean())
        return torch.stack(losses).sum()

    def channel_loss(self) -> Tensor:
        """The distance of the latents of the last forward, weighted by entropy; a scalar, 0 or more."""
        student, teacher = self._last()
        losses = []
        for name, channels in self.channels.items():
            ours, theirs = student.latents[name], teacher.latents[name].map(lambda v, c=channels: v[:, c.pairing])
            if self.entropy_loss == "mse":
                distances = (ours.y - theirs.y).square().mean((0, 2, 3))
            else:
                distances = channel_divergence(ours, theirs)
            losses.append((channels.weights * distances).sum())
        return torch.stack(losses).sum()

    def _last(self) -> tuple[Pass, Pass]:
        if self._passes is None:
            raise UsageError("no forward has run yet")
        return self._passes

    @torch.no_grad()
    def _calibrated(self, batches: list[Tensor], widths: dict[str, int]) -> dict[str, Channels]:
        """By latent, at rounded latents and rates as the forward draws them, from a seed of their own."""
        teacher, totals, without = self._teacher[0], {}, set()
        with torch.random.fork_rng(_generators(batches[0])):
            torch.manual_seed(0)
            for x in batches:
                for name, latent in observe(self._forward, teacher, x, ()).latents.items():
                    bits = -latent.likelihoods.double().log2().mean((0, 2, 3)) / len(batches)
                    totals[name] = totals.get(name, 0.0) + bits
                    without |= {name} if latent.scales is None else set()
        found = {}
        for name, total in totals.items():
            if not self._counts(name):
                continue
            if self.entropy_loss == "kl" and name in without:
                raise UsageError(
                    f"entropy_loss='kl': the entropy model of {type(teacher).__name__} predicts no distributions"
                )
            if not (total.isfinite().all() and total.sum() > 0):
                raise UsageError(f"the teacher's latents cost {float(total.sum()):g} bits (needs a trained teacher)")
            if widths[name] > len(total):
                raise UsageError(
                    f"the student has {widths[name]} latent channels, its teacher {len(total)} "
                    f"(needs {widths[name]} or more)"
                )
            found[name] = Channels(total.clamp(min=0), widths[name])
        return found

    def _counts(self, latent: str) -> bool:
        """Whether the half of a video codec that `latent` is of has one of the transforms."""
        return any(path.startswith("intra.") == latent.startswith("intra_") for path in self._transforms)

    def _new_adapters(self) -> nn.ModuleList:
        generator = torch.Generator().manual_seed(0)
        adapters = nn.ModuleList()
        for ours, theirs in self.stages:
            adapter = nn.utils.skip_init(nn.Conv2d, ours.channels, theirs.channels, 1)
            nn.init.zeros_(adapter.bias)
            latent = _latent_of(ours)
            if ours.channels == theirs.channels:
                nn.init.dirac_(adapter.weight)
            elif latent in self.channels:
                weight = torch.zeros(theirs.channels, ours.channels)
                weight[self.channels[latent].pairing.cpu(), torch.arange(ours.channels)] = 1
                adapter.weight.data = weight[:, :, None, None]
            else:
                nn.init.orthogonal_(adapter.weight, generator=generator)
            adapters.append(adapter)
        return adapters

    @contextlib.contextmanager
    def _quantising_like(self, student: nn.Module) -> Iterator[None]:
        """Within the context the teacher quantises as in the student's mode; its layers stay in their own."""
        teacher = self._teacher[0]
        quantising = {"", "intra", "inter", *COMPRESSAI_CODERS, *(f"intra.{name}" for name in COMPRESSAI_CODERS)}
        quantising |= {path[:i] for path in self._transforms for i, mark in enumerate(path) if mark == "."}
        modules = {name: module for name, module in teacher.named_modules() if name in quantising}
        before = {name: module.training for name, module in modules.items()}
        try:
            for name, module in modules.items():
                module.training = student.get_submodule(name).training
            yield
        finally:
            for name, module in modules.items():
                module.training = before[name]


def _latent_of(stage: Stage) -> str | None:
    """Name of the latent that a transform returns."""
    half, _, path = stage.transform.partition(".")
    path, prefix = (path, "intra_" if half == "intra" else "") if half in ("intra", "inter") else (stage.transform, "")
    return f"{prefix}{ANALYSES[path]}" if path in ANALYSES and stage.path == stage.transform else None


def _paired(student: list[Stage], teacher: list[Stage]) -> tuple[tuple[Stage, Stage], ...]:
    shapes = [[(stage.transform, stage.height) for stage in stages] for stages in (student, teacher)]
    if shapes[0] != shapes[1]:
        ours, theirs = (", ".join(f"{name} {height}" for name, height in ends) for ends in shapes)
        raise UsageError(f"the student's stages end at rows {ours}; the teacher's at {theirs} (needs one family)")
    return tuple(zip(student, teacher, strict=True))


def _generators(x: Tensor) -> list[torch.device]:
    """Devices whose random numbers a forward on `x` draws, beside the CPU."""
    return [x.device] if x.device.type == "cuda" else []


def _same_teacher(feds: FEDS, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    stored = state.get(f"{prefix}teacher_hash")
    if stored is not None and not torch.equal(stored.cpu(), feds.teacher_hash.cpu()):
        raise UsageError(
            "the checkpoint was made with another teacher: its channels and adapters would not fit this one"
        )
