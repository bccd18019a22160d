"""One forward of a codec, looked into: what its layers returned, and what its entropy models were given."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsecodec.errors import UsageError
from sparsecodec.nn.likelihood import Latent

COMPRESSAI_CODERS = ("gaussian_conditional", "entropy_bottleneck")  # the first one that a codec of theirs has codes y
Forward = Callable[[nn.Module, Tensor], tuple[dict[str, Any], Tensor]]


@dataclass(frozen=True)
class Stage:
    """The end of a stage: where a transform returns, or the last of its layers at a spatial size.

    Attributes:
        transform: path of the transform.
        path: of the layer; that of the transform where it returns.
        index: which of the tensors that it returns.
        channels: of that tensor.
        height: of that tensor for the picture that was probed.
    """

    transform: str
    path: str
    index: int
    channels: int
    height: int


@dataclass(frozen=True)
class Pass:
    """One forward of a codec, looked into.

    Attributes:
        out, rates: what the forward returned.
        calls: by path, the tensors ``[N, C, h, w]`` of each call of the layer; in the order of their first returns.
        latents: by name, ``y``, of codecs of motion also ``mv_y``, with ``intra_`` before it of a clip's first frame;
            the frames of a clip one after the other.
    """

    out: dict[str, Any]
    rates: Tensor
    calls: dict[str, list[tuple[Tensor, ...]]]
    latents: dict[str, Latent]


def observe(forward: Forward, model: nn.Module, x: Tensor, paths: Iterable[str]) -> Pass:
    """Runs ``forward(model, x)`` and keeps what the layers at `paths` returned, as often as they ran."""
    calls: dict[str, list[tuple[Tensor, ...]]] = {}
    latents: dict[str, Latent] = {}

    def keep(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple, output: Tensor | Sequence[Tensor]) -> None:
            tensors = (output,) if isinstance(output, Tensor) else tuple(output)
            if all(isinstance(tensor, Tensor) and tensor.ndim == 4 for tensor in tensors):
                calls.setdefault(path, []).append(tensors)

        return hook

    with contextlib.ExitStack() as hooks:
        for path in paths:
            hooks.callback(model.get_submodule(path).register_forward_hook(keep(path)).remove)
        for name, coder in _compressai_coders(model):
            hooks.callback(coder.register_forward_hook(_look(name, latents), with_kwargs=True).remove)
        out, rates = forward(model, x)
    latents |= out.get("latents", {})
    return Pass(out, rates, calls, {name: latent.map(Tensor.float) for name, latent in latents.items()})


@torch.no_grad()
def stages_of(forward: Forward, model: nn.Module, x: Tensor, transforms: Sequence[str]) -> list[Stage]:
    """The ends of the stages of every transform: where the size of its layers' maps changes next, and where it returns.

    Args:
        forward: runs the model.
        model: any codec.
        x: to probe with, ``[N, 3, H, W]``, or of a video codec ``[N, T, 3, H, W]``. What does not run there has no
            stage, such as what reads the feature of a predicted frame in clips of two frames.
        transforms: paths. Their layers are the direct children.

    Raises:
        UsageError: a transform does not exist, or none of them runs.
    """
    names = [name for name, _ in model.named_modules()]
    if missing := [path for path in transforms if path not in names]:
        raise UsageError(f"{type(model).__name__} has no {', '.join(missing)}")
    layers = {path: _layers(model, path) for path in transforms}
    with evaluated(model):
        calls = observe(forward, model, x, [*transforms, *(path for paths in layers.values() for path in paths)]).calls
    stages = [stage for path in transforms if path in calls for stage in _ends(path, layers[path], calls)]
    if not stages:
        raise UsageError(f"none of the transforms {', '.join(transforms)} of {type(model).__name__} runs")
    return stages


@contextlib.contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    """Within the context all of `model` is in eval mode."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in before:
            module.training = mode


def _ends(transform: str, layers: Sequence[str], calls: dict[str, list[tuple[Tensor, ...]]]) -> Iterator[Stage]:
    """Of one transform, from its first call."""
    returned = calls[transform][0]
    ran = [(path, calls[path][0][0]) for path in calls if path in set(layers) and len(calls[path][0]) == 1]
    for (path, value), (_, following) in zip(ran, ran[1:], strict=False):
        if following.shape[2:] != value.shape[2:] and not any(value is tensor for tensor in returned):
            yield Stage(transform, path, 0, value.shape[1], value.shape[2])
    for index, value in enumerate(returned):
        yield Stage(transform, transform, index, value.shape[1], value.shape[2])


def _layers(model: nn.Module, path: str) -> list[str]:
    """The direct children of a module; of lists of modules, which never run, theirs."""
    found = []
    for name, child in model.get_submodule(path).named_children():
        found += _layers(model, f"{path}.{name}") if isinstance(child, nn.ModuleList) else [f"{path}.{name}"]
    return found


def _compressai_coders(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Name of the latent, and what codes it, of a codec of CompressAI's or a video codec whose intra model is one."""
    for name, codec in (("y", model), ("intra_y", getattr(model, "intra", None))):
        coder = next((getattr(codec, coder) for coder in COMPRESSAI_CODERS if hasattr(codec, coder)), None)
        if coder is not None:
            yield name, coder


def _look(name: str, latents: dict[str, Latent]) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: tuple, keywords: dict[str, Any], output: tuple[Tensor, Tensor]) -> None:
        arguments = dict(zip(("y", "scales", "means"), inputs, strict=False)) | keywords
        scales, means = arguments.get("scales"), arguments.get("means")
        if scales is not None and means is None:
            means = torch.zeros_like(scales)
        latents[name] = Latent(arguments["y"], output[1], means, scales)

    return hook
