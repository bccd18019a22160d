"""The networks of a compiled video codec: by their path in the model, with what runs each layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparsecodec.nn.routine import Host, Routine
from sparsecodec.ops import warp
from sparsecodec.runtime.executor import Executor
from sparsecodec.runtime.graphs import CudaGraphs
from sparsecodec.runtime.numerics import Numerics, video_numerics
from sparsecodec.runtime.report import Report
from sparsecodec.runtime.settled import neutral
from sparsecodec.runtime.transform import CompiledTransform
from sparsecodec.sparsity.macs import LayerMacs, count
from sparsecodec.sparsity.scatter import ScatterConv2d

STEP = "quant_step"  # the argument of a network that multiplies its channels


class Stepped(nn.Module):
    """A network and the step that its result is multiplied by.

    Args:
        name: last component of the network's path in the model.
        network: maps one tensor to one.
    """

    def __init__(self, name: str, network: nn.Module) -> None:
        super().__init__()
        self.add_module(name, network)

    def forward(self, x: Tensor, quant_step: Tensor) -> Tensor:
        (network,) = self.children()
        return network(x) * quant_step


class Network(nn.Module):
    """A compiled network in the place of the model's own. What it gives lives in a buffer until its next call.

    Args:
        transform: what runs.
    """

    def __init__(self, transform: CompiledTransform) -> None:
        super().__init__()
        self.transform = transform
        self.shapes: tuple[torch.Size, ...] = ()  # of the tensors that it was given first

    def forward(self, *inputs: Tensor, **steps: Tensor) -> Any:
        inputs = (*inputs, *steps.values())
        self.shapes = self.shapes or tuple(x.shape for x in inputs)
        return self.transform(*inputs)


class Keeping(nn.Module):
    """A network whose result is new memory.

    Args:
        network: gives one tensor.
        dtype: of the result.
    """

    def __init__(self, network: Network, dtype: torch.dtype) -> None:
        super().__init__()
        self._network = network
        self._dtype = dtype

    def forward(self, *inputs: Tensor, **steps: Tensor) -> Tensor:
        return self._network(*inputs, **steps).to(self._dtype, copy=True)


def warp_any(x: Tensor, flow: Tensor) -> Tensor:
    """`sparsecodec.ops.warp` of tensors of any layout."""
    return warp(x.contiguous(memory_format=torch.channels_last), flow.float())


class VideoNetworks:
    """Compiled networks, called by their path.

    Args:
        model: in eval mode, float32, on the device; not modified.
        strict: as for `CompiledTransform`.

    Attributes:
        device: where they run.
        executor: runs the routines that call them.
    """

    def __init__(self, model: nn.Module, strict: bool) -> None:
        self.device = next(model.parameters()).device
        self.executor = Executor(self.device, CudaGraphs(self.device) if self.device.type == "cuda" else None)
        self._model = model
        self._strict = strict
        self._networks: dict[str, Network] = {}
        self._modules: dict[str, tuple[str, nn.Module]] = {}  # prefix of a network's layers, and what it computes

    def add(self, path: str, dtype: torch.dtype, *, stepped: bool = False, module: nn.Module | None = None) -> Network:
        """Compiles the network at `path` and returns it.

        Args:
            path: in the model.
            dtype: of its activations.
            stepped: its result is multiplied by a step, which comes as another argument.
            module: a part of that network, of its own children by their names, instead of all of it.
        """
        prefix, module = path, module or self._model.get_submodule(path)
        if stepped:
            prefix, _, name = path.rpartition(".")
            module = Stepped(name, module)
        transform = CompiledTransform(module, path, dtype, strict=self._strict, factors=(STEP,), prefix=prefix)
        self._networks[path], self._modules[path] = Network(transform), (prefix, module)
        return self._networks[path]

    def run(self, routine: Callable[..., Routine], *inputs: Any, host: Host) -> Any:
        """Runs a routine that calls them, as `Executor.run`."""
        with neutral():
            return self.executor.run(routine, *inputs, host=host)

    @property
    def transforms(self) -> list[CompiledTransform]:
        """What runs, in the order of `add`."""
        return [network.transform for network in self._networks.values()]

    @property
    def numerics(self) -> Numerics:
        """What all of them compute with, where torch's share does not depend on its threads."""
        return self.numerics_of(None)

    def numerics_of(self, threads: int | None) -> Numerics:
        """As `numerics`; `threads` as for `video_numerics`."""
        backends = frozenset().union(*(transform.backends for transform in self.transforms))
        dtypes = {str(transform.dtype).removeprefix("torch.") for transform in self.transforms}
        return video_numerics(backends, dtypes, self.device, threads)

    def capture_notes(self) -> tuple[str, ...]:
        """What a report says of the graphs; nothing where there are none."""
        if self.device.type != "cuda":
            return ()
        return f"{self.executor.captures} CUDA graphs held", *self.executor.refusals

    def positions(self, path: str) -> int:
        """Of the first tensor that the network at `path` was given; 0: it has not run yet."""
        shapes = self._networks[path].shapes
        return shapes[0][2] * shapes[0][3] if shapes else 0

    def report(self, pixels: float, decoder: Sequence[str], notes: tuple[str, ...], prefix: str = "") -> Report:
        """Each layer with its op, backend and MACs per pixel of a frame.

        Args:
            pixels: of the frame with which each network ran first.
            decoder: paths of the networks that decoding a predicted frame runs.
            notes: sentences on precision and guarantees.
            prefix: of the paths of the networks that are to be in it.
        """
        macs: dict[str, tuple[float, float]] = {}
        networks = {path: network for path, network in self._networks.items() if path.startswith(prefix)}
        for path, network in networks.items():
            inside, module = self._modules[path]
            for layer in count(module, {"": network.shapes}).layers if network.shapes else ():
                name = ".".join(part for part in (inside, layer.name) if part)
                macs[name] = (layer.macs, layer.macs * dense_share(self._model.get_submodule(name), layer))
        transforms = [network.transform for network in networks.values()]
        rows = [row for transform in transforms for row in transform.rows(pixels, macs)]
        held = sum(transform.buffer_bytes for transform in transforms)
        return Report(tuple(rows), notes, tuple(decoder), held)


def dense_share(module: nn.Module, layer: LayerMacs) -> float:
    """How many times the MACs of a layer it had before it was pruned."""
    module = module.conv if isinstance(module, ScatterConv2d) else module
    dense_in, dense_out = getattr(module, "dense_channels", layer.channels)
    kept_in, kept_out = layer.channels
    if layer.kind == "depthwise":
        return dense_out / max(kept_out, 1)
    return dense_in * dense_out / max(kept_in * kept_out, 1)
