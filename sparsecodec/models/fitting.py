"""An architecture brought to the shapes of a checkpoint, so that pruned weights load as whole ones do."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from sparsecodec.errors import UsageError


class Weights(dict):
    """A state dict of which a missing key is an error of ours."""

    def __missing__(self, key: str) -> Tensor:
        raise UsageError(f"the weights have no {key!r} (only {len(self)} others): of another family, or incomplete")


def numbered(state: Mapping[str, Tensor], pattern: str) -> int:
    """How many keys there are of the form `pattern`, whose ``{}`` stands for a number."""
    form = re.compile(re.escape(pattern).replace(r"\{\}", r"\d+"))
    return sum(form.fullmatch(key) is not None for key in state)


def filled(
    build: Callable[[], nn.Module], state: Mapping[str, Tensor], run: Callable[[nn.Module], object]
) -> nn.Module:
    """A model with the weights of `state`, of whatever widths these have.

    Args:
        build: the architecture, with widths that may differ.
        state: weights; copied.
        run: one pass of a model on the meta device, by which widths that do not fit together are found.

    Returns:
        The model, in eval mode, in the dtype and on the device of the weights.

    Raises:
        UsageError: keys are missing or unknown, or the widths do not fit together.
    """
    with torch.device("meta"):
        model = build().eval()
        _resize(model, state)
        try:
            with torch.no_grad():
                run(model)
        except RuntimeError as error:
            raise UsageError(f"the widths of this {type(model).__name__} do not fit together: {error}") from error
    model.load_state_dict({key: value.detach().clone() for key, value in state.items()}, assign=True)
    computed = [name for name, value in model.named_buffers() if value.is_meta]
    if computed:  # by a constructor, and in no state dict
        built, device = build(), next(model.parameters()).device
        for name in computed:
            path, _, buffer = name.rpartition(".")
            setattr(model.get_submodule(path), buffer, built.get_buffer(name).to(device))
    return model


def _resize(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    for path, module in list(model.named_modules()):
        adaptor = state.get(f"{path}.adaptor.weight")
        if hasattr(module, "adaptor") and (module.adaptor is None) != (adaptor is None):
            # Pruned to the same width on both sides a block still has one, though it would not be built with one.
            module.adaptor = None if adaptor is None else nn.Conv2d(adaptor.shape[1], adaptor.shape[0], 1)
        for name, value in list(module.named_parameters(recurse=False)):
            key = f"{path}.{name}" if path else name
            if key in state and value.shape != state[key].shape:
                setattr(module, name, nn.Parameter(torch.empty(state[key].shape)))
        if isinstance(module, nn.Conv2d) and f"{path}.weight" in state:
            out, inside = state[f"{path}.weight"].shape[:2]
            if module.groups > 1:
                module.groups = out // inside
            module.out_channels, module.in_channels = out, inside * module.groups
        if isinstance(module, nn.Linear) and f"{path}.weight" in state:
            module.out_features, module.in_features = state[f"{path}.weight"].shape
