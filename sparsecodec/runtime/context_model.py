"""The context model of an autoregressive codec as one native call per latent."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sparsecodec.entropy import EntropyTables, observed
from sparsecodec.entropy.native import native
from sparsecodec.errors import UsageError
from sparsecodec.runtime.report import Row

OP = "context_model"


def why_not_native(context: nn.Conv2d, parameters: nn.Module, device: torch.device) -> str:
    """Why `ContextModel` cannot run these networks on that device, one sentence; empty if it can."""
    if device.type != "cpu":
        return f"selects tables position by position on {device.type}, so it runs as in the model"
    if context.dilation != (1, 1):
        return f"{context} is dilated, so it runs position by position as in the model"
    layers = list(parameters) if isinstance(parameters, nn.Sequential) else [parameters]
    for index, layer in enumerate(layers):
        activation = type(layer) in (nn.LeakyReLU, nn.ReLU)
        pointwise = type(layer) is nn.Conv2d and (layer.kernel_size, layer.stride, layer.padding) == (
            (1, 1),
            (1, 1),
            (0, 0),
        )
        after = type(layers[index - 1]) if index else None
        if not (pointwise and layer.groups == 1) and not (activation and after is nn.Conv2d):
            return f"entropy_parameters holds {layer}, so it runs position by position as in the model"
    return ""


class Offsets(NamedTuple):
    """How far towards zero from its symbol a value is taken to be (arXiv 2402.18930).

    Attributes:
        network: linear layers and ReLUs, ``[..., 2]``, deviation and gain, -> ``[..., 1]``.
        bound: least deviation.
    """

    network: nn.Module
    bound: float


class ContextRate(NamedTuple):
    """What a rate does to a latent and its tables.

    Attributes:
        gain: > 0, factor of the scales.
        scaled: whether the latent less its means is multiplied by it, and offset, too.
        shift: ``[1, C, 1, 1]`` or None, added to the context.
    """

    gain: float
    scaled: bool
    shift: Tensor | None


def why_no_offsets(network: nn.Module) -> str:
    """Why `ContextModel` cannot run this network of `Offsets`, one sentence; empty if it can."""
    layers = list(network) if isinstance(network, nn.Sequential) else [network]
    for index, layer in enumerate(layers):
        after_linear = index > 0 and type(layers[index - 1]) is nn.Linear
        if type(layer) is not nn.Linear and not (type(layer) is nn.ReLU and after_linear):
            return f"the offsets' network holds {layer}, so it runs position by position as in the model"
    return ""


def _layers(parameters: nn.Module) -> list[tuple[Tensor, Tensor | None, str, float]]:
    """(weight, bias, activation, slope) of each 1x1."""
    layers: list[tuple[Tensor, Tensor | None, str, float]] = []
    for layer in parameters if isinstance(parameters, nn.Sequential) else [parameters]:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            weight = layer.weight.contiguous()
            layers.append((weight.view(*weight.shape[:2], 1, 1), layer.bias, "none", 1.0))
        else:
            slope = layer.negative_slope if isinstance(layer, nn.LeakyReLU) else 0.0
            layers[-1] = (*layers[-1][:2], "leaky_relu" if slope else "relu", slope)
    return layers


class ContextModel:
    """Codes latents whose tables depend on what was coded before. Pinned: the same bits on every CPU and thread count.

    Positions are coded wave by wave: (row, column) belongs to wave ``column + (reach + 1) * row``, and those of a wave
    by ascending row; ``csrc/cpu/context_model.h`` has the arithmetic. CompressAI's strings hold them row by row.

    Args:
        context: masked convolution, no tap from its centre on. `why_not_native` accepts it and the next.
        parameters: 1x1 convolutions, over the hyper-prior's channels followed by those of `context`.
        thresholds: scale -> row of `tables`, as for `entropy_parameters`.
        means_first: whether `parameters` gives means before scales, as in DCVC, or behind them, as in CompressAI.
        offsets: of latents that are coded at a rate; `why_no_offsets` accepts their network.
    """

    def __init__(
        self,
        context: nn.Conv2d,
        parameters: nn.Module,
        thresholds: Tensor,
        tables: EntropyTables,
        means_first: bool = False,
        offsets: Offsets | None = None,
    ) -> None:
        self._context = context
        constants = (context.weight.contiguous(), context.bias, _layers(parameters), means_first, thresholds)
        self._native = native().ContextModelPlan(*constants, tables.native, *_offsets(offsets))

    def encode(self, y: Tensor, prior: Tensor, rate: ContextRate | None = None) -> tuple[bytes, Tensor]:
        """One latent to a string.

        Args:
            y: ``[1, M, H, W]`` float32.
            prior: ``[1, P, H, W]`` float32.
            rate: None leaves everything as it is.

        Returns:
            The string, and what `decode` will make of it.
        """
        y, prior = (x.contiguous(memory_format=torch.channels_last) for x in (y, prior))
        padded, y_hat = self._empty(prior)
        return self._native.encode(y, prior, padded, rate), y_hat

    def decode(self, string: bytes, prior: Tensor, rate: ContextRate | None = None) -> Tensor:
        """The latent of a string as its encoder had it, ``[1, M, H, W]`` float32, channels innermost.

        Raises:
            BitstreamError: the string does not hold exactly a latent of the size of `prior`.
        """
        padded, y_hat = self._empty(prior)
        self._native.decode(string, prior.contiguous(memory_format=torch.channels_last), padded, rate)
        observed(y_hat.contiguous().numpy().view(np.int32))  # for the symbols, which do not leave the native call
        return y_hat

    def _empty(self, prior: Tensor) -> tuple[Tensor, Tensor]:
        """Memory for the latent with what its context sees around it, and the latent's part of it."""
        reach, (h, w) = self._context.kernel_size[0] // 2, prior.shape[2:]
        size = (1, self._context.in_channels, h + reach, w + 2 * reach)
        padded = torch.empty(size, dtype=torch.float32, memory_format=torch.channels_last)
        return padded, padded[:, :, reach:, reach : reach + w]


class ContextRows(ContextModel):
    """As `ContextModel`, but position by position, row by row, with the bits of torch's own layers.

    How torch adds is a fact about its version, the processor and the thread count, not a promise. `matches` compares;
    where it says no, this class must not be used.

    Args:
        parameters_at: what must be matched: (``[1, M, size, size]`` around a position, ``[1, P, 1, 1]`` hyper-prior
            there) -> ``[1, E, 1, 1]``.
    """

    # Ways that torch is known to go: input channels that oneDNN adds before it goes on, the floats of a register; and
    # whether MKL has four sums (`csrc/cpu/four_sums.h`) or is called.
    WAYS = ((16, True), (8, True), (16, False), (8, False))

    def __init__(
        self,
        context: nn.Conv2d,
        parameters: nn.Module,
        thresholds: Tensor,
        tables: EntropyTables,
        parameters_at: Callable[[Tensor, Tensor], Tensor],
        means_first: bool = False,
        offsets: Offsets | None = None,
    ) -> None:
        self._context = context
        self._parameters_at = parameters_at
        self._offsets = offsets
        layers, gemv, gemm = _layers(parameters), _blas("sgemv_"), _blas("sgemm_")
        self._prior_channels = layers[0][0].shape[1] - context.out_channels
        constants = (context.weight.contiguous(), context.bias, layers, means_first, thresholds, tables.native)
        self._constants = (*constants, *_offsets(offsets), gemv, gemm)
        self._ways = self.WAYS if gemv and gemm and torch.cpu._is_avx2_supported() else ()
        self._plans: dict[tuple[int, bool], Any] = {}  # of the ways that were tried: weights are packed for each

    def matches(self) -> bool:
        """Whether the bits are torch's here and now: in this process, with as many threads as it has at the moment."""
        return any(self._chooses(way) for way in self._ways)

    def _chooses(self, way: tuple[int, bool]) -> bool:
        if way not in self._plans:
            self._plans[way] = native().ContextRowsPlan(*self._constants, *way)
        self._native = plan = self._plans[way]
        size, random = self._context.kernel_size[0], torch.Generator().manual_seed(7)
        for spread in (1.0, 30.0):
            latent = torch.randn(
                1, self._context.in_channels, size + 2, size + 2, generator=random, dtype=torch.float32
            )
            prior = torch.randn(1, self._prior_channels, 2, 2, generator=random, dtype=torch.float32)
            latent *= spread
            # slices, as they are when coding
            seen, here = latent[:, :, 1 : 1 + size, 1 : 1 + size], prior[:, :, 1:, 1:]
            ours = plan.parameters(*(x.contiguous(memory_format=torch.channels_last) for x in (seen, here)))
            if not torch.equal(ours, self._parameters_at(seen, here)):
                return False
            if self._offsets is not None:
                pairs = torch.rand(1, latent.shape[1], 1, 1, 2, generator=random, dtype=torch.float32) * spread
                ours = plan.offsets(pairs.view(1, -1, 1, 2).permute(0, 3, 1, 2))
                if not torch.equal(ours.flatten(), self._offsets.network(pairs).flatten()):
                    return False
        return True


def _offsets(offsets: Offsets | None) -> tuple[list[tuple[Tensor, Tensor | None, str, float]], float]:
    """As the native classes take them."""
    return ([], 0.0) if offsets is None else (_layers(offsets.network), offsets.bound)


def _blas(name: str) -> int:
    """Address of a function of torch's BLAS, 0 if it shows none."""
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        return ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0
    except (OSError, AttributeError):
        return 0


class ContextPart:
    """The report's view of a network that runs inside a `ContextModel`.

    Args:
        module: the network.
        name: its path in the model.
        model: what runs it.
    """

    backends = frozenset({"cpu"})
    buffer_bytes = 0

    def __init__(self, module: nn.Module, name: str, model: ContextModel) -> None:
        self.model = model
        self._name = name
        self._width = next(layer.out_channels for layer in module.modules() if isinstance(layer, nn.Conv2d))
        self._paths = tuple(path for path, layer in module.named_modules(prefix=name) if not list(layer.children()))

    def __call__(self, x: Tensor) -> Tensor:
        """Never: see `model`."""
        raise UsageError(f"{self._name} runs inside the context model only")

    def footprint(self, shape: tuple[int, ...], device: torch.device) -> int:
        """As `CompiledTransform.footprint`: its input with a copy of it, and as much as its first layer gives."""
        n, channels, height, width = shape
        return 4 * (2 * channels + self._width) * n * height * width

    def rows(self, pixels: int, shapes: dict[str, Any]) -> list[Row]:
        """As `CompiledTransform.rows`: one for the whole network."""
        macs, dense = (sum(shapes.get(path, (0, 0))[i] for path in self._paths) / pixels for i in (0, 1))
        return [Row(self._name, self._paths, OP, "cpu", "float32", macs, dense, "", "wave by wave in one call")]
