"""A compiled transform: fused steps, each bound to one implementation, on buffers that are planned per picture size."""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from sparsecodec.errors import NoBackendError
from sparsecodec.ops._epilogue import channels_innermost
from sparsecodec.ops._registry import Bound, bind, forced_backend, specs, why_unavailable
from sparsecodec.runtime.fusion import fuse
from sparsecodec.runtime.lowering import PLAIN, Step, lower
from sparsecodec.runtime.report import Row

MAX_PLANS = 8  # picture sizes whose buffers are kept; the least recently used goes first


@dataclass
class _Plan:
    """Buffers of one input shape. `out` holds, per step, the tensor it writes, or None if the step allocates."""

    out: list[Tensor | None]
    bytes: int


class CompiledTransform:
    """Runs one transform of a codec on fused kernels.

    The result of a call lives in a buffer of the plan and is overwritten by the next call with the same shape.

    Args:
        module: maps one tensor to one tensor; not modified.
        name: its path in the model.
        dtype: of activations and weights.
        strict: raise if a layer with a rule finds no kernel although its device has kernels.
    """

    def __init__(self, module: nn.Module, name: str, dtype: torch.dtype, *, strict: bool = True) -> None:
        self.name = name
        self.dtype = dtype
        self.strict = strict
        self._program = fuse(lower(module, name))
        for step in self._program.steps:
            if isinstance(step.function, nn.Module):
                step.function = copy.deepcopy(step.function).to(dtype)
            step.args, step.kwargs = fx.node.map_aggregate((step.args, step.kwargs), self._in_dtype)
        self._bound: dict[Step, Bound] = {}
        self._plans: OrderedDict[torch.Size, _Plan] = OrderedDict()
        self._index = {step: index for index, step in enumerate(self._program.steps)}

    def __call__(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]``, any float dtype -> the transform's output in `dtype`, channels_last."""
        x = x.to(self.dtype).contiguous(memory_format=torch.channels_last)
        plan = self._plans.get(x.shape)
        if plan is None:
            return self._first_run(x)
        self._plans.move_to_end(x.shape)
        values: list[Any] = [x, *([None] * (len(self._program.steps) - 1))]
        for index, step in enumerate(self._program.steps[1:], 1):
            values[index] = self._run(step, values, plan.out[index])
        return values[self._index[self._program.output]]

    def _run(self, step: Step, values: list[Any], out: Tensor | None) -> Any:
        if step.op == PLAIN:

            def take(value: Any) -> Any:
                return values[self._index[value]] if isinstance(value, Step) else value

            return step.function(*fx.node.map_aggregate(step.args, take), **fx.node.map_aggregate(step.kwargs, take))
        inputs = {name: values[self._index[source]] for name, source in step.inputs.items()}
        for name, source in step.inputs.items():
            if source.op == PLAIN and not channels_innermost(inputs[name]):
                inputs[name] = inputs[name].contiguous(memory_format=torch.channels_last)
        bound = self._bound.get(step)
        if bound is None:
            bound = self._bound[step] = self._bind(step, inputs)
        return bound.run(**inputs, out=out)

    def _in_dtype(self, value: Any) -> Any:
        return value.to(self.dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    def _first_run(self, x: Tensor) -> Tensor:
        """Runs once with fresh tensors, binding what is not bound, then plans the buffers for this shape."""
        steps = self._program.steps
        values: list[Any] = [x]
        for step in steps[1:]:
            values.append(self._run(step, values, None))
        self._plans[x.shape] = self._plan(values)
        if len(self._plans) > MAX_PLANS:
            self._plans.popitem(last=False)
        return values[self._index[self._program.output]]

    def _bind(self, step: Step, inputs: dict[str, Tensor]) -> Bound:
        spec = specs()[step.op]
        bound = bind(spec, **inputs, **step.constants)
        has_kernels = any(why_unavailable(impl.backend) is None for impl in spec.impls)
        if bound.backend == "reference" and self.strict and has_kernels and forced_backend() != "reference":
            reasons = "\n".join(bound.refused)
            raise NoBackendError(
                f"{', '.join(step.paths)}: no kernel for {step.op} (strict=False allows it)\n{reasons}"
            )
        return bound

    def _plan(self, values: list[Any]) -> _Plan:
        """Gives every step that can write into a given tensor part of a pool, reused once its last reader is done."""
        steps = self._program.steps
        last_use = {step: index for index, step in enumerate(steps)}
        last_use[self._program.output] = len(steps)
        for index in reversed(range(len(steps))):
            for source in steps[index].sources:
                # What a plain step returns may be a view of what it read, so its inputs live as long as its result.
                until = last_use[steps[index]] if steps[index].op == PLAIN else index
                last_use[source] = max(last_use[source], until)
        pool: list[int] = []  # bytes per buffer
        free: list[int] = []
        held: list[tuple[int, int]] = []  # (last use, buffer)
        assigned: list[int | None] = []
        for index, step in enumerate(steps):
            free += [buffer for until, buffer in held if until < index]
            held = [(until, buffer) for until, buffer in held if until >= index]
            bound = self._bound.get(step)
            if bound is None or bound.backend == "reference":
                assigned.append(None)
                continue
            need = values[index].numel() * values[index].element_size()
            fitting = sorted((pool[buffer], buffer) for buffer in free if pool[buffer] >= need)
            if fitting:
                buffer = fitting[0][1]
            elif free:
                buffer = max(free, key=pool.__getitem__)
                pool[buffer] = need
            else:
                buffer = len(pool)
                pool.append(need)
            free = [other for other in free if other != buffer]
            held.append((last_use[step], buffer))
            assigned.append(buffer)
        storage = [torch.empty(size, dtype=torch.uint8, device=values[0].device) for size in pool]
        out = [None if b is None else _like(values[i], storage[b]) for i, b in enumerate(assigned)]
        return _Plan(out, sum(pool))

    @property
    def pinned(self) -> bool:
        """Whether every step runs on a float32 kernel whose bits depend on nothing but its inputs."""
        steps = self._program.steps[1:]
        on_cpu = all(step in self._bound and self._bound[step].backend == "cpu" for step in steps)
        return on_cpu and self.dtype == torch.float32

    @property
    def buffer_bytes(self) -> int:
        """Held for the picture sizes seen so far."""
        return sum(plan.bytes for plan in self._plans.values())

    def rows(self, pixels: int, shapes: dict[str, Any]) -> list[Row]:
        """Rows of the report. `shapes` maps layer paths to (macs, dense macs) of a picture with that many pixels."""
        rows = []
        for step in self._program.steps[1:]:
            bound = self._bound.get(step)
            macs, dense = (sum(shapes.get(path, (0, 0))[i] for path in step.paths) / pixels for i in (0, 1))
            op = step.op if step.op != PLAIN else _label(step)
            backend = bound.backend if bound else "torch" if step.op == PLAIN else "not run yet"
            reason = "; ".join(line.strip() for line in bound.refused) if bound else step.reason
            dtype = str(self.dtype).removeprefix("torch.")
            rows.append(Row(self.name, step.paths, op, backend, dtype, macs, dense, reason))
        return rows


class EagerTransform:
    """A transform that runs as the model's own layers do.

    Args:
        module: maps one tensor to one tensor; not modified.
        name: its path in the model.
        reason: why it is not compiled.
    """

    pinned = False
    buffer_bytes = 0

    def __init__(self, module: nn.Module, name: str, reason: str) -> None:
        self.name = name
        self._module = module
        self._reason = reason

    def __call__(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` float32 -> the transform's output."""
        return self._module(x)

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
    return function.args[0] if isinstance(function, partial) else getattr(function, "__name__", str(function))


def _like(result: Tensor, storage: Tensor) -> Tensor:
    """A view of `storage` with the shape, dtype and strides of `result`."""
    count = result.numel() * result.element_size()
    return storage[:count].view(result.dtype).as_strided(result.shape, result.stride())
