"""Which layer made a number that is none."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sparsecodec.training.optimizers import is_auxiliary


def broken_parameter(model: nn.Module) -> str | None:
    """The first weight that is not finite, or whose gradient is not: a phrase, None if there is none."""
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            return f"the weight {name} is not finite"
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            return f"the gradient of {name} is not finite"
    return None


def largest_gradient(model: nn.Module) -> str:
    """The layer whose weights have the gradient of the largest norm, in float64 as float32 may not hold its square."""
    squares: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not is_auxiliary(name):
            layer = name.rpartition(".")[0] or name
            squares[layer] = squares.get(layer, 0) + parameter.grad.double().square().sum()
    layer, square = max(squares.items(), key=lambda item: item[1])
    return f"the gradient of {layer} is the largest, its norm {square.sqrt():.3g}"


def broken_layer(model: nn.Module, forward: Callable[[], object]) -> str | None:
    """The first layer without children whose output is not finite when `forward` runs `model`; a phrase, or None."""
    found: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, tuple, object], None]:
        def hook(module: nn.Module, inputs: tuple, output: object) -> None:
            if not found and any(not tensor.isfinite().all() for tensor in _tensors(output)):
                at_input = any(not tensor.isfinite().all() for tensor in _tensors(inputs))
                found.append(f"{'the input' if at_input else 'the output'} of {name} is not finite")

        return hook

    leaves = [(name, module) for name, module in model.named_modules() if not list(module.children())]
    hooks = [module.register_forward_hook(watch(name)) for name, module in leaves]
    try:
        with torch.no_grad():
            forward()
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def _tensors(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    return [tensor for item in value for tensor in _tensors(item)] if isinstance(value, tuple | list) else []
