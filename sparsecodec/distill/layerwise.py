"""Layer-wise distillation: every block of the student is compared with the dense block on the student's own input."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparsecodec.errors import UsageError

EPSILON = 1e-7  # added to a position's norm, so that all-zero features have a direction


def blocks_of(model: nn.Module, transforms: Sequence[str]) -> list[str]:
    """Paths of the direct children of the transforms that have parameters: the usual layers to distil."""
    return [
        f"{path}.{name}"
        for path in transforms
        for name, child in model.get_submodule(path).named_children()
        if any(True for _ in child.parameters())
    ]


def feature_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference after each position is divided by the L2 norm over its channels; free of scale.

    Args:
        student: ``[N, C, H, W]``.
        teacher: ``[N, C, H, W]``.

    Returns:
        scalar, in [0, 4 / C].
    """
    a = student / (torch.linalg.vector_norm(student, dim=1, keepdim=True) + EPSILON)
    b = teacher / (torch.linalg.vector_norm(teacher, dim=1, keepdim=True) + EPSILON)
    return (a - b).square().mean()


class LayerwiseDistillation(nn.Module):
    """Sum of the blocks' distances to a frozen teacher; the more a block is distorted, the more it weighs.

    ``loss = sum_l a_l d_l``, ``a_l = sg[e_l / sum_k e_k]``, e the running mean of d. The teacher's block runs without
    gradient on what the student's block was given, so errors do not add up along the depth::

        with distillation.watching():
            out = student(x)
        loss = rate_distortion(out) + weight * distillation.loss()

    State dict: the running means.

    Args:
        student: trained; not modified.
        teacher: the dense model, same paths; not modified, never receives a gradient.
        layers: paths of modules with one tensor out, such as `blocks_of`. One that runs several times, as in a clip,
            counts with the mean of its distances.
        decay: of the running mean.

    Raises:
        UsageError: no layer, or a path that one of the models lacks.
    """

    average: Tensor

    def __init__(self, student: nn.Module, teacher: nn.Module, layers: Sequence[str], decay: float = 0.99) -> None:
        super().__init__()
        if not layers:
            raise UsageError("no layers to distil")
        self.layers = tuple(layers)
        self.decay = decay
        pairs = [(_module(student, path, "student"), _module(teacher, path, "teacher")) for path in self.layers]
        object.__setattr__(self, "pairs", pairs)  # not submodules: their state is their owners'
        self.register_buffer("average", torch.full((len(self.layers),), torch.nan))
        self._distances: dict[int, list[Tensor]] = {}
        self._targets: dict[int, Tensor] = {}

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Within the context, every forward of the student's blocks also runs the teacher's, and is compared."""
        self._distances.clear()
        hooks = []
        try:
            for i, (block, dense) in enumerate(self.pairs):
                hooks.append(block.register_forward_pre_hook(self._run_teacher(i, dense), with_kwargs=True))
                hooks.append(block.register_forward_hook(self._compare(i)))
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self._targets.clear()

    def loss(self) -> Tensor:
        """Weighted sum of the distances of the last forward under `watching`; also updates the running means.

        Raises:
            UsageError: a block did not run.
        """
        missing = [path for i, path in enumerate(self.layers) if i not in self._distances]
        if missing:
            raise UsageError(f"blocks {missing} did not run under watching()")
        distances = torch.stack([torch.stack(self._distances[i]).mean() for i in range(len(self.layers))])
        now = distances.detach().float().to(self.average.device)
        first = self.average.isnan()
        self.average.copy_(torch.where(first, now, self.decay * self.average + (1 - self.decay) * now))
        return (self.weights().to(distances) * distances).sum()

    def weights(self) -> Tensor:
        """``[L]`` float32, sum 1: each block's share of the running means; uniform while all of them are 0."""
        total = self.average.sum()
        if not total > 0:
            return torch.full_like(self.average, 1 / len(self.layers))
        return self.average / total

    def _run_teacher(self, i: int, dense: nn.Module):
        def hook(block: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            with torch.no_grad():  # on copies: blocks may begin with an operation in place
                values = [_copy(value) for value in inputs]
                self._targets[i] = dense.forward(*values, **{key: _copy(value) for key, value in named.items()})

        return hook

    def _compare(self, i: int):
        def hook(block: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            # a copy, because what follows the block may change its output in place
            self._distances.setdefault(i, []).append(feature_distance(output.clone(), self._targets.pop(i)))

        return hook


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _module(model: nn.Module, path: str, role: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise UsageError(f"the {role} {type(model).__name__} has no module {path!r}") from error
