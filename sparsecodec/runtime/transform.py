"""A compiled transform: fused steps, each bound to one implementation, on buffers that are planned per picture size."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from sparsecodec.errors import NoBackendError
from sparsecodec.ops._epilogue import channels_innermost
from sparsecodec.ops._registry import Bound, bind, forced_backend, specs, why_unavailable
from sparsecodec.runtime.fusion import ends_in_head, fuse
from sparsecodec.runtime.lowering import INPUTS, PLAIN, Step, lower
from sparsecodec.runtime.planning import Plan, footprint, hold, make_plan
from sparsecodec.runtime.report import Row
from sparsecodec.runtime.torch_steps import Writer, writer
from sparsecodec.runtime.turns import Turns
from sparsecodec.runtime.uncopied import Uncopied

MAX_PLANS = 8  # picture sizes whose buffers are kept; the least recently used goes first


class CompiledTransform(Uncopied):
    """Runs one transform of a codec on fused kernels.

    The result of a call lives in a buffer of the plan and is overwritten by the next call with the same shape. One
    thread calls at a time; on a GPU each may have a stream of its own, see `Turns`.

    Args:
        module: maps tensors to a tensor or a tuple of them; not modified.
        name: its path in the model.
        dtype: of activations and weights.
        strict: raise if a layer with a rule finds no kernel although its device has kernels.
        head: as for `fuse`.
        factors: as for `lower`.
        prefix: what the paths of its layers begin with in the model, if it is not `name`.
        pinned: False: convolutions in float32 may take fewer products, see `conv2d_act`.
    """

    def __init__(
        self,
        module: nn.Module,
        name: str,
        dtype: torch.dtype,
        *,
        strict: bool = True,
        head: dict[str, Any] | None = None,
        factors: Sequence[str] = (),
        prefix: str | None = None,
        pinned: bool = True,
    ) -> None:
        self.name = name
        self.dtype = dtype
        self.strict = strict
        self._program = fuse(lower(module, name if prefix is None else prefix, factors), head)
        for step in self._program.steps:
            if step.op in ("conv2d_act", "conv_transpose2d_act"):
                step.constants["pinned"] = pinned
            if isinstance(step.function, nn.Module):
                step.function = copy.deepcopy(step.function).to(dtype)
            step.args, step.kwargs = fx.node.map_aggregate((step.args, step.kwargs), self._in_dtype)
        self._begin()

    def _begin(self) -> None:
        """What calls need beside the program."""
        self._bound: dict[Step, Bound] = {}
        self._writers: dict[Step, Writer | None] = {step: writer(step) for step in self._program.steps}
        self._plans: OrderedDict[tuple[torch.Size, ...], Plan] = OrderedDict()
        self._index = {step: index for index, step in enumerate(self._program.steps)}
        self._turns = Turns()

    @property
    def has_head(self) -> bool:
        """Whether calls return (indexes, means) as `prior_head` does."""
        return ends_in_head(self._program)

    @torch.no_grad()  # torch writes into planned tensors only where it records nothing
    def __call__(self, *inputs: Tensor) -> Any:
        """Runs the transform.

        Args:
            inputs: ``[N, C, H, W]``, any float dtype; factors ``[1, C, 1, 1]``.

        Returns:
            The transform's output in `dtype`, channels_last; or see `has_head`.
        """
        stream = self._turns.take(inputs[0].device)
        given = self._program.inputs
        key = tuple(x.shape for x in inputs)
        plan = self._plans.get(key)
        if plan is None:
            ready = [self._ready(step, x, {}) for step, x in zip(given, inputs, strict=True)]
            plan = self._plans[key] = make_plan(self._program, self.name, *ready, turns=self._turns)
            if len(self._plans) > MAX_PLANS:
                self._plans.popitem(last=False)
        self._plans.move_to_end(key)
        hold(plan)
        if stream is not None:
            plan.used_on(stream)
        values: list[Any] = [None] * len(self._program.steps)
        for step, x in zip(given, inputs, strict=True):
            values[self._index[step]] = self._ready(step, x, plan.converted)
        for index, step in enumerate(self._program.steps):
            if step.op not in INPUTS:
                values[index] = self._run(step, values, plan.out[index])
        return values[self._index[self._program.output]]

    def _ready(self, step: Step, x: Tensor, converted: dict[Step, Tensor]) -> Tensor:
        """An argument as the steps read it; `converted`: of the plan."""
        if step.op == "factors":
            return x.flatten().float()
        if x.dtype != self.dtype:
            if x.device.type == "cpu":  # a CUDA graph has memory of its own
                if step not in converted:
                    with torch.inference_mode(False):  # as the plan's buffers
                        memory = torch.empty(x.shape, dtype=self.dtype, memory_format=torch.channels_last)
                    converted[step] = memory
                return converted[step].copy_(x)
            x = x.to(self.dtype, memory_format=torch.channels_last)  # one pass for both
        return x if channels_innermost(x) else x.contiguous(memory_format=torch.channels_last)

    def _run(self, step: Step, values: list[Any], out: Tensor | None) -> Any:
        if step.op == PLAIN:

            def take(value: Any) -> Any:
                return values[self._index[value]] if isinstance(value, Step) else value

            args = fx.node.map_aggregate(step.args, take)
            if out is not None:
                return self._writers[step](*args, out=out)
            return step.function(*args, **fx.node.map_aggregate(step.kwargs, take))
        inputs = {name: values[self._index[source]] for name, source in step.inputs.items()}
        for name, source in step.inputs.items():
            if source.op == PLAIN and not channels_innermost(inputs[name]):  # factors never come from a plain step
                inputs[name] = inputs[name].contiguous(memory_format=torch.channels_last)
        bound = self._bound.get(step)
        if bound is None:
            bound = self._bound[step] = self._bind(step, inputs)
        return bound.run(**inputs, out=out)

    def _in_dtype(self, value: Any) -> Any:
        return value.to(self.dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    def _bind(self, step: Step, inputs: dict[str, Tensor]) -> Bound:
        spec = specs()[step.op]
        bound = bind(spec, **inputs, **step.constants)
        has_kernels = any(why_unavailable(impl.backend) is None for impl in spec.impls)
        if bound.backend == "reference" and self.strict and has_kernels and forced_backend() != "reference":
            reasons = "\n".join(bound.refused)
            raise NoBackendError(
                f"{', '.join(step.paths)}: no kernel for {step.op} (strict=False allows it)\n{reasons}"
            )
        # What the op leaves open at binding, such as factors that may be computed, and the program has fixed.
        fixed = {name: value for name, value in step.constants.items() if name not in spec.constants}
        return replace(bound, run=partial(bound.run, **fixed)) if fixed else bound

    @property
    def backends(self) -> frozenset[str]:
        """Who runs the steps; ``torch`` for those that stayed torch layers."""
        steps = [step for step in self._program.steps if step.op not in INPUTS]
        return frozenset(self._bound[step].backend if step in self._bound else PLAIN for step in steps)

    @property
    def buffer_bytes(self) -> int:
        """Held for the picture sizes seen so far."""
        return sum(plan.bytes for plan in list(self._plans.values()))  # while another thread may code

    @property
    def holds(self) -> bool:
        """Whether there is something to release."""
        return bool(self._plans)

    def release(self) -> None:
        """Drops the buffers; the next call makes those that it needs."""
        self._plans.clear()

    def footprint(self, shape: tuple[int, ...], device: torch.device) -> int:
        """Bytes that a call with an input of that shape holds at its peak, without allocating them."""
        return footprint(self._program, self.name, (shape,), self.dtype, device)

    def rows(self, pixels: float, shapes: dict[str, Any]) -> list[Row]:
        """Rows of the report. `shapes` maps layer paths to (macs, dense macs) of a picture with that many pixels."""
        rows = []
        for step in self._program.steps:
            if step.op in INPUTS:
                continue
            bound = self._bound.get(step)
            macs, dense = (sum(shapes.get(path, (0, 0))[i] for path in step.paths) / pixels for i in (0, 1))
            op = step.op if step.op != PLAIN else _label(step)
            backend = bound.backend if bound else "torch" if step.op == PLAIN else "not run yet"
            reason = "; ".join(line.strip() for line in bound.refused) if bound else step.reason
            dtype = str(self.dtype).removeprefix("torch.")
            note = getattr(bound.run, "note", "") if bound else ""
            rows.append(Row(self.name, step.paths, op, backend, dtype, macs, dense, reason, note))
        return rows


class EagerTransform:
    """A transform that runs as the model's own layers do.

    Args:
        module: maps one tensor to one tensor; not modified.
        name: its path in the model.
        reason: why it is not compiled.
    """

    backends = frozenset({PLAIN})
    buffer_bytes = 0

    def __init__(self, module: nn.Module, name: str, reason: str) -> None:
        self.name = name
        self._module = module
        self._reason = reason

    def __call__(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` float32 -> the transform's output."""
        return self._module(x)

    def footprint(self, shape: tuple[int, ...], device: torch.device) -> int:
        """As `CompiledTransform.footprint`: input and output of the layer for which they are largest."""
        largest = 0

        def note(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            nonlocal largest
            largest = max(largest, sum(tensor.numel() * tensor.element_size() for tensor in (*inputs, output)))

        module = copy.deepcopy(self._module).to("meta")
        for layer in module.modules():
            layer.register_forward_hook(note)
        module(torch.empty(shape, dtype=torch.float32, device="meta"))
        return largest

    def rows(self, pixels: int, shapes: dict[str, Any]) -> list[Row]:
        """As `CompiledTransform.rows`: one per layer."""
        rows = []
        for path, layer in self._module.named_modules(prefix=self.name):
            if not list(layer.children()):
                macs, dense = (value / pixels for value in shapes.get(path, (0, 0)))
                kind = type(layer).__name__
                rows.append(Row(self.name, (path,), kind, "torch", "float32", macs, dense, self._reason))
        return rows


def _label(step: Step) -> str:
    function = step.function
    if isinstance(function, nn.Module):
        return type(function).__name__
    return step.target if isinstance(function, partial) else getattr(function, "__name__", str(function))
