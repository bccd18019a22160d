"""FEDS: a light student learns the features of a larger teacher, and its most informative latent channels.

After arXiv 2503.06399, of which the abstract alone is public: losses, layers and weights are this project's own reading
(feature alignment, then channels by entropy, then fine-tuning, which is plain training).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecodec.errors import UsageError
from sparsecodec.nn.fingerprint import model_hash
from sparsecodec.nn.likelihood import SCALE_MIN

TRANSFORMS = ("enc", "hyper_enc", "hyper_dec", "dec", "g_a", "h_a", "h_s", "g_s")
ENTROPY_MODELS = ("gaussian_conditional", "entropy_bottleneck")  # the first one that a CompressAI codec has codes y
ENTROPY_LOSSES = ("mse", "kl")
Forward = Callable[[nn.Module, Tensor], tuple[dict[str, Any], Tensor]]


@dataclass(frozen=True)
class Stage:
    """The end of a stage: the last layer of a transform at its spatial size.

    Attributes:
        path: of the layer.
        channels: of its output.
        height: of its output for the picture that was probed.
    """

    path: str
    channels: int
    height: int

    @property
    def transform(self) -> str:
        return self.path.partition(".")[0]


@dataclass(frozen=True)
class Latent:
    """What the entropy model of a codec was given, and what it made of it.

    Attributes:
        y: ``[N, C, h, w]`` float32, before it is quantised, in quantisation steps.
        likelihoods: ``[N, C, h, w]`` float32.
        means, scales: ``[N, C, h, w]`` float32 of a Gaussian; None for an entropy model that has none.
    """

    y: Tensor
    likelihoods: Tensor
    means: Tensor | None
    scales: Tensor | None


@dataclass(frozen=True)
class Pass:
    """One forward of a codec, looked into.

    Attributes:
        out, rates: what the forward returned.
        features: by path.
        latent: of the picture.
    """

    out: dict[str, Any]
    rates: Tensor
    features: dict[str, Tensor]
    latent: Latent


def observe(forward: Forward, model: nn.Module, x: Tensor, paths: Iterable[str]) -> Pass:
    """Runs ``forward(model, x)`` and keeps what the layers at `paths` returned.

    Raises:
        UsageError: one of the layers did not run.
    """
    features: dict[str, Tensor] = {}
    seen: dict[str, Tensor | None] = {}

    def keep(path: str) -> Callable[..., None]:
        return lambda module, inputs, output: features.__setitem__(path, output)

    def look(module: nn.Module, inputs: tuple, keywords: dict[str, Any], output: tuple[Tensor, Tensor]) -> None:
        arguments = dict(zip(("y", "scales", "means"), inputs, strict=False)) | keywords
        seen.update(y=arguments["y"], likelihoods=output[1])
        if arguments.get("scales") is not None:
            means = arguments.get("means")
            scales = arguments["scales"]
            seen.update(scales=scales, means=torch.zeros_like(scales) if means is None else means)

    with contextlib.ExitStack() as hooks:
        for path in paths:
            hooks.callback(model.get_submodule(path).register_forward_hook(keep(path)).remove)
        coder = next((getattr(model, name) for name in ENTROPY_MODELS if hasattr(model, name)), None)
        if coder is not None:
            hooks.callback(coder.register_forward_hook(look, with_kwargs=True).remove)
        out, rates = forward(model, x)
    if missing := [path for path in paths if path not in features]:
        raise UsageError(f"layers {', '.join(missing)} of {type(model).__name__} did not run")
    latent = {key: value.float() for key, value in (out.get("latent") or seen).items()}
    return Pass(out, rates, features, Latent(**{"means": None, "scales": None, **latent}))


@torch.no_grad()
def stages_of(forward: Forward, model: nn.Module, x: Tensor) -> list[Stage]:
    """The ends of the stages of every transform: where the spatial size changes next, and at the end.

    Args:
        forward: runs the model.
        model: any codec with transforms that are sequences, named as in EVC or CompressAI.
        x: ``[N, 3, H, W]`` picture to probe with.

    Raises:
        UsageError: no transform is found.
    """
    transforms = [name for name in TRANSFORMS if isinstance(getattr(model, name, None), nn.Sequential)]
    if not transforms:
        raise UsageError(f"{type(model).__name__} has none of the transforms {', '.join(TRANSFORMS)}")
    layers = {
        name: [f"{name}.{child}" for child, _ in model.get_submodule(name).named_children()] for name in transforms
    }
    features = observe(forward, model, x, [path for paths in layers.values() for path in paths]).features
    stages = []
    for paths in layers.values():
        for path, following in zip(paths, [*paths[1:], None], strict=True):
            if following is None or features[following].shape[2:] != features[path].shape[2:]:
                stages.append(Stage(path, features[path].shape[1], features[path].shape[2]))
    return stages


def channel_divergence(student: Latent, teacher: Latent) -> Tensor:
    """KL(N(mu_T, sigma_T) || N(mu_S, sigma_S)) of each channel: nats, the mean over pictures and positions.

    It is what coding the teacher's latent with the student's tables costs more than with its own. Scales below 0.11
    count as 0.11, as in the likelihood.

    Args:
        student, teacher: of as many channels.

    Returns:
        ``[C]`` float32, 0 or more.
    """
    s, t = student.scales.clamp(min=SCALE_MIN), teacher.scales.clamp(min=SCALE_MIN)
    distance = (t.square() + (teacher.means - student.means).square()) / (2 * s.square())
    return ((s / t).log() + distance - 0.5).mean((0, 2, 3))


class FEDS(nn.Module):
    """What a student's forward is compared with, and the two distances.

    feature loss = sum over the ends l of stages of mean (A_l(f_l^S) - sg f_l^T)^2
    channel loss = sum over c in Omega of w_c mean (y_c^S - sg y_c^T)^2,    w_c = H_c / sum over Omega of H
    H_c = E[-log2 p_T(y_hat_c | context)]: bits a position that the teacher's entropy model needs, on a calibration set

    Omega are the K channels of the teacher with the largest H_c, K the width of the student's latent, in the order in
    which the teacher has them: channel k of the student follows channel ``pairing[k]``. It is fixed here, once. The A_l
    are 1x1 convolutions that belong to this module and so never to the student; where widths agree they start as the
    identity, at the latent as the embedding of the student's channels into the teacher's, else as an orthogonal matrix.

    The teacher's layers stay in eval mode and never get a gradient. What quantises follows the student's mode, and the
    random numbers of the student's forward are drawn again for the teacher's: in training, where CompressAI's codecs
    replace rounding by noise, both see the same noise and the same rates. EVC rounds what its networks read in both
    modes; noise enters its rate alone.

    State dict: adapters, entropies, pairing, and the identity of the teacher.

    Args:
        student: not modified.
        teacher: of the same family, with as many latent channels or more; put into eval mode, without gradients.
        forward: ``(model, x) -> (out, rates)``, for both.
        batches: calibration set, each ``[N, 3, H, W]`` float32 in [0, 1].
        entropy_loss: "mse" as above, or "kl": w_c * `channel_divergence` in place of the squared difference.

    Raises:
        UsageError: the two codecs do not fit, the calibration set is empty or costs the teacher no bits, or
            `entropy_loss` is unknown or asks for Gaussians that the entropy models do not have.
    """

    entropies: Tensor  # [C_T] float64, bits a position
    pairing: Tensor  # [K] int64, increasing
    teacher_hash: Tensor  # [32] uint8

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        forward: Forward,
        batches: Iterable[Tensor],
        entropy_loss: str = "mse",
    ) -> None:
        super().__init__()
        if entropy_loss not in ENTROPY_LOSSES:
            raise UsageError(f"entropy_loss={entropy_loss!r} (needs one of {', '.join(ENTROPY_LOSSES)})")
        self.entropy_loss = entropy_loss
        self._forward = forward
        teacher.eval().requires_grad_(False)
        self._teacher = (teacher,)  # a tuple: its weights are no part of this module
        batches = list(batches)
        if not batches:
            raise UsageError("the calibration set is empty (needs at least one batch)")
        self.stages = _paired(*(stages_of(forward, model, batches[0][:1]) for model in (student, teacher)))
        with torch.no_grad():
            width = observe(forward, student, batches[0][:1], ()).latent.y.shape[1]
        self.register_buffer("entropies", self._calibrated(batches))
        if width > len(self.entropies):
            raise UsageError(
                f"the student has {width} latent channels, its teacher {len(self.entropies)} (needs {width} or more)"
            )
        chosen = self.entropies.sort(descending=True, stable=True).indices[:width]
        self.register_buffer("pairing", chosen.sort().values)
        self.register_buffer("teacher_hash", torch.tensor(list(model_hash(teacher)), dtype=torch.uint8))
        self.register_load_state_dict_pre_hook(_same_teacher)
        self.adapters = self._new_adapters().to(batches[0].device)
        self._passes: tuple[Pass, Pass] | None = None

    @property
    def weights(self) -> Tensor:
        """``[K]`` float32, sum 1: share of each paired channel in the entropy of all paired channels."""
        paired = self.entropies[self.pairing]
        return (paired / paired.sum()).float()

    def forward(self, model: nn.Module, x: Tensor) -> tuple[dict[str, Any], Tensor]:
        """Runs the teacher and then the student; the losses are those of the last call.

        Args:
            model: the student, or a later state of it.
            x: ``[N, 3, H, W]`` float32 in [0, 1].

        Returns:
            What ``forward(model, x)`` returns; the random numbers drawn are those of the student's forward alone.
        """
        self._passes = None
        with torch.random.fork_rng(_generators(x)):  # undoes the teacher's draws: the student repeats them
            with torch.no_grad(), _quantising_like(model, self._teacher[0]):
                teacher = observe(self._forward, self._teacher[0], x, [theirs.path for _, theirs in self.stages])
        student = observe(self._forward, model, x, [ours.path for ours, _ in self.stages])
        self._passes = student, teacher
        return student.out, student.rates

    def feature_loss(self) -> Tensor:
        """The distance of the features of the last forward; a scalar, 0 or more."""
        student, teacher = self._last()
        losses = [
            F.mse_loss(adapter(student.features[ours.path].float()), teacher.features[theirs.path].float())
            for adapter, (ours, theirs) in zip(self.adapters, self.stages, strict=True)
        ]
        return torch.stack(losses).sum()

    def channel_loss(self) -> Tensor:
        """The distance of the latents of the last forward, weighted by entropy; a scalar, 0 or more."""
        student, teacher = (run.latent for run in self._last())
        teacher = Latent(*(None if value is None else value[:, self.pairing] for value in vars(teacher).values()))
        if self.entropy_loss == "mse":
            distances = (student.y - teacher.y).square().mean((0, 2, 3))
        else:
            distances = channel_divergence(student, teacher)
        return (self.weights * distances).sum()

    def _last(self) -> tuple[Pass, Pass]:
        if self._passes is None:
            raise UsageError("no forward has run yet")
        return self._passes

    @torch.no_grad()
    def _calibrated(self, batches: list[Tensor]) -> Tensor:
        """`entropies`, at rounded latents and rates as the forward draws them, from a seed of their own."""
        total = 0.0
        with torch.random.fork_rng(_generators(batches[0])):
            torch.manual_seed(0)
            for x in batches:
                latent = observe(self._forward, self._teacher[0], x, ()).latent
                total = total - latent.likelihoods.double().log2().mean((0, 2, 3)) / len(batches)
        if self.entropy_loss == "kl" and latent.scales is None:
            raise UsageError(
                f"entropy_loss='kl': the entropy model of {type(self._teacher[0]).__name__} has no Gaussians"
            )
        if not (total.isfinite().all() and total.sum() > 0):
            raise UsageError(f"the teacher's latents cost {float(total.sum()):g} bits (needs a trained teacher)")
        return total.clamp(min=0)

    def _new_adapters(self) -> nn.ModuleList:
        generator = torch.Generator().manual_seed(0)
        adapters = nn.ModuleList()
        for ours, theirs in self.stages:
            adapter = nn.utils.skip_init(nn.Conv2d, ours.channels, theirs.channels, 1)
            nn.init.zeros_(adapter.bias)
            if ours.channels == theirs.channels:
                nn.init.dirac_(adapter.weight)
            elif self._ends_analysis(ours):
                weight = torch.zeros(theirs.channels, ours.channels)
                weight[self.pairing.cpu(), torch.arange(ours.channels)] = 1
                adapter.weight.data = weight[:, :, None, None]
            else:
                nn.init.orthogonal_(adapter.weight, generator=generator)
            adapters.append(adapter)
        return adapters

    def _ends_analysis(self, stage: Stage) -> bool:
        last = [ours for ours, _ in self.stages if ours.transform == stage.transform][-1]
        return stage.transform in ("enc", "g_a") and stage is last


def _paired(student: list[Stage], teacher: list[Stage]) -> tuple[tuple[Stage, Stage], ...]:
    shapes = [[(stage.transform, stage.height) for stage in stages] for stages in (student, teacher)]
    if shapes[0] != shapes[1]:
        ours, theirs = (", ".join(f"{name} {height}" for name, height in ends) for ends in shapes)
        raise UsageError(f"the student's stages end at rows {ours}; the teacher's at {theirs} (needs one family)")
    return tuple(zip(student, teacher, strict=True))


def _generators(x: Tensor) -> list[torch.device]:
    """Devices whose random numbers a forward on `x` draws, beside the CPU."""
    return [x.device] if x.device.type == "cuda" else []


@contextlib.contextmanager
def _quantising_like(student: nn.Module, teacher: nn.Module) -> Iterator[None]:
    """Within the context the teacher quantises as in the student's mode; its layers stay in their own."""
    modules = [teacher, *(getattr(teacher, name) for name in ENTROPY_MODELS if hasattr(teacher, name))]
    before = [module.training for module in modules]
    try:
        for module in modules:
            module.training = student.training
        yield
    finally:
        for module, mode in zip(modules, before, strict=True):
            module.training = mode


def _same_teacher(feds: FEDS, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    stored = state.get(f"{prefix}teacher_hash")
    if stored is not None and not torch.equal(stored.cpu(), feds.teacher_hash.cpu()):
        raise UsageError(
            "the checkpoint was made with another teacher: its channels and adapters would not fit this one"
        )
