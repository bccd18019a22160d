"""CompressAI's codecs with a factorized prior or a hyperprior (arXiv 1802.01436, 1809.02736)."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sparsecodec.entropy import DEFAULT_MAX_PIXELS, EntropyTables, decode, encode
from sparsecodec.errors import BitstreamError, ResourceLimitError, UsageError
from sparsecodec.nn.routine import Coding, Routine
from sparsecodec.ops import entropy_parameters, quantize_latent, restore_latent, scale_table_thresholds
from sparsecodec.runtime.codec import CompiledCodec, finished
from sparsecodec.runtime.settled import settled

Network = Callable[[Tensor], Tensor]
MAX_SYMBOL = 2**24  # float32 holds every integer up to here; the family does not clip


class CompressAICodec(CompiledCodec):
    """``compress(x)`` and ``decompress(strings, shape)`` as the model's own.

    In float32 ``compress`` runs the model's own layers throughout, so its strings are the model's own byte for byte. In
    other dtypes the analysis is compiled: a latent may round to the other side, the strings are valid and open in both.
    ``encode`` always runs the compiled analysis.

    Attributes:
        CHILDREN: names of the model's parts; a model with other parts has another structure.
    """

    CHILDREN: ClassVar[frozenset[str]]

    def __init__(self, model: nn.Module, device: torch.device, dtype: torch.dtype, strict: bool) -> None:
        coders = self.CHILDREN & {"entropy_bottleneck", "gaussian_conditional"}
        if not all(model.get_submodule(name)._offset.numel() for name in coders):
            model = copy.deepcopy(model)
            model.update()
        super().__init__(model, device, dtype, strict)
        self._bottleneck = Bottleneck(self._model.entropy_bottleneck)
        self._latent = self._channels("g_a", 3, self.STRIDE, 16)

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        return {name for name, _ in model.named_children()} - {"portable"} == cls.CHILDREN

    @abstractmethod
    def _compress(self, x: Tensor, networks: Callable[[str], Network]) -> tuple[list[list[bytes]], torch.Size]:
        """Pictures -> a list of strings per latent, and the spatial shape of the last of them."""

    @abstractmethod
    def _decompress(
        self, strings: list[list[bytes]], shape: torch.Size, size: tuple[int, int], networks: Callable[[str], Network]
    ) -> Tensor:
        """The inverse of `_compress`, to pictures of that height and width, as `finished` gives them."""

    def _network_of_strings(self, path: str) -> Network:
        """What `compress` and `decompress` run at `path` to find symbols and tables."""
        compiled = path in self.ANALYSIS and not self._analyses_as_original
        return self._transforms[path] if compiled else self._model.get_submodule(path)

    @property
    def _analyses_as_original(self) -> bool:
        return self.dtype == torch.float32

    @settled
    def compress(self, x: Tensor) -> dict[str, Any]:
        """As the model's own; in float32 the very bytes.

        Args:
            x: ``[N, 3, H, W]`` floating point, finite, N at least 1. With a hyperprior ceil(H / 16) and ceil(W / 16)
                are multiples of 4.

        Returns:
            ``strings``, a list per latent of N byte strings, and ``shape``, what `decompress` needs beside them.
        """
        self._check_picture(x)
        networks = self._network_of_strings
        strings, shape = self._compressing(x, lambda: self._compress(x.to(self.device, torch.float32), networks))
        return {"strings": strings, "shape": shape}

    def _check_picture(self, x: Tensor) -> None:
        if not isinstance(x, Tensor) or x.ndim != 4 or x.shape[1] != 3 or 0 in x.shape or not x.is_floating_point():
            found = f"{tuple(x.shape)} {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
            raise UsageError(f"picture {found} (needs a floating point tensor [N, 3, H, W], not empty)")
        if "h_s" in self.CHILDREN and any(-(-side // 16) % 4 for side in x.shape[2:]):
            raise UsageError(
                f"picture {tuple(x.shape)} (needs H and W of which a sixteenth, rounded up, is a multiple of 4, as of "
                f"49 to 64; `encode` takes any)"
            )
        if not bool(x.isfinite().all()):
            raise UsageError("picture with NaN or infinite values (needs finite ones)")

    @settled
    def decompress(self, strings: Sequence[Sequence[bytes]], shape: Sequence[int]) -> dict[str, Tensor]:
        """As the model's own.

        Args:
            strings, shape: what `compress` of this codec or of the model itself gave.

        Returns:
            ``x_hat``: ``[N, 3, H, W]`` float32 in [0, 1].

        Raises:
            BitstreamError: a string is damaged or foreign.
        """
        size = self._check_strings(strings, shape)
        inputs = [list(some) for some in strings], torch.Size(shape), size, self._network_of_strings
        return {"x_hat": self._decompressing(size, len(inputs[0][0]), lambda: self._decompress(*inputs))}

    def _check_strings(self, strings: Sequence[Sequence[bytes]], shape: Sequence[int]) -> tuple[int, int]:
        """The size of the pictures."""
        counts = [len(strings_of_latent) for strings_of_latent in strings]
        latents = len(self.CHILDREN & {"g_s", "h_s"})
        if len(counts) != latents or len(set(counts)) != 1 or not counts[0]:
            raise UsageError(f"lists of {counts} strings (needs {latents} lists of one length, at least 1)")
        if len(shape) != 2 or min(shape) < 1:
            raise UsageError(f"shape={tuple(shape)} (needs two numbers, at least 1)")
        pixels = shape[0] * shape[1] * self.STRIDE**2
        if pixels > DEFAULT_MAX_PIXELS:
            what = f"shape={tuple(shape)} is a picture of {pixels} pixels"
            raise ResourceLimitError(f"{what} (limit: {DEFAULT_MAX_PIXELS})")
        return shape[0] * self.STRIDE, shape[1] * self.STRIDE

    def _encode(self, x: Tensor, quality: float | None, size: tuple[int, int]) -> tuple[list[list[bytes]], int]:
        if quality is not None:
            raise UsageError(f"quality={quality} ({type(self._model).__name__} has one rate; needs None)")
        strings, _ = self._compress(x, self._transforms.__getitem__)
        return [list(of_picture) for of_picture in zip(*strings, strict=True)], 0

    def _decode(self, payloads: list[list[bytes]], quality: int, height: int, width: int) -> Tensor:
        latents = len(self.CHILDREN & {"g_s", "h_s"})
        for of_picture in payloads:
            if len(of_picture) != latents or quality:
                found = f"{len(of_picture)} payloads at quality {quality}"
                raise BitstreamError(f"{found} (this codec has {latents}, at 0)")
        shape = torch.Size((-(-height // self.STRIDE), -(-width // self.STRIDE)))
        strings = [list(of_latent) for of_latent in zip(*payloads, strict=True)]
        return self._decompress(strings, shape, (height, width), self._transforms.__getitem__)

    def _channels(self, path: str, channels: int, side: int, ratio: int) -> int:
        """Channels that a network makes, once it is known to shrink a `side` by `ratio` (or to grow it, below 1)."""
        module = copy.deepcopy(self._model.get_submodule(path)).to("meta")
        with torch.no_grad():
            shape = module(torch.empty(1, channels, side, side, dtype=torch.float32, device="meta")).shape
        if shape[2:] != (side / ratio, side / ratio):
            raise UsageError(f"{path} maps {side} x {side} to {tuple(shape[2:])} (needs a factor of 1/{ratio:g})")
        return shape[1]


class FactorizedCodec(CompressAICodec):
    """A latent under a learnt distribution per channel."""

    STRIDE: ClassVar = 16
    SYNTHESIS: ClassVar = ("g_s",)
    ANALYSIS: ClassVar = ("g_a",)
    ENTROPY: ClassVar = ()
    CHILDREN: ClassVar = frozenset({"entropy_bottleneck", "g_a", "g_s"})

    def input_shapes(self, height: int, width: int) -> dict[str, tuple[int, int, int, int]]:
        return {"g_a": (1, 3, height, width), "g_s": (1, self._latent, height // 16, width // 16)}

    def _compress(self, x: Tensor, networks: Callable[[str], Network]) -> tuple[list[list[bytes]], torch.Size]:
        calls = Calls()
        self._executor.run(self._analysis, x, networks, host=calls)
        return calls.strings, calls.shape

    def _analysis(self, x: Tensor, networks: Callable[[str], Network]) -> Routine:
        yield self._bottleneck.coding(self._bottleneck.quantize(networks("g_a")(x).float()))

    def _decompress(
        self, strings: list[list[bytes]], shape: torch.Size, size: tuple[int, int], networks: Callable[[str], Network]
    ) -> Tensor:
        return self._executor.run(self._synthesis, self._bottleneck.decode(strings[0], shape), *size, host=Calls())

    def _synthesis(self, symbols: Tensor, height: int, width: int) -> Routine:
        yield from ()
        return finished(self._transforms["g_s"](self._bottleneck.restore(symbols)), height, width)


class HyperpriorCodec(CompressAICodec):
    """A latent under normal distributions whose scales, or means and scales, a hyper-latent tells.

    A hyper-synthesis as wide as the latent gives scales, and its hyper-analysis reads magnitudes; one twice as wide
    gives scales and means, and its hyper-analysis reads the latent.
    """

    SYNTHESIS: ClassVar = ("g_s",)
    ANALYSIS: ClassVar = ("g_a", "h_a")
    ENTROPY: ClassVar[tuple[str, ...]] = ("h_s",)
    CHILDREN: ClassVar = frozenset({"entropy_bottleneck", "gaussian_conditional", "g_a", "g_s", "h_a", "h_s"})

    def __init__(self, model: nn.Module, device: torch.device, dtype: torch.dtype, strict: bool) -> None:
        super().__init__(model, device, dtype, strict)
        conditional = self._model.gaussian_conditional
        self._tables = coder_tables(conditional)
        bound = float(conditional.lower_bound_scale.bound)
        self._thresholds = scale_table_thresholds(conditional.scale_table, bound).to(device)
        self._hyper_latent = self._channels("h_a", self._latent, 4, 4)
        self._prior_channels = self._channels("h_s", self._hyper_latent, 1, 0.25)
        self._has_means = self._parameter_channels() == 2 * self._latent
        if self._parameter_channels() not in (self._latent, 2 * self._latent):
            raise UsageError(
                f"{self._parameter_channels()} entropy parameters for {self._latent} latent channels "
                f"(needs as many, or twice as many)"
            )

    def _parameter_channels(self) -> int:
        """Width of what the tables are chosen by."""
        return self._prior_channels

    def input_shapes(self, height: int, width: int) -> dict[str, tuple[int, int, int, int]]:
        h, w = height // 16, width // 16
        return {
            "g_a": (1, 3, height, width),
            "h_a": (1, self._latent, h, w),
            "h_s": (1, self._hyper_latent, h // 4, w // 4),
            "g_s": (1, self._latent, h, w),
        }

    def _compress(self, x: Tensor, networks: Callable[[str], Network]) -> tuple[list[list[bytes]], torch.Size]:
        calls = Calls()
        self._executor.run(self._analysis, x, networks, host=calls)
        return calls.strings[::-1], calls.shape

    def _latents(
        self, x: Tensor, networks: Callable[[str], Network], step: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Pictures -> their latents, and the symbols of their hyper-latents; `step` as for `Bottleneck.quantize`."""
        y = networks("g_a")(x).float()
        z = networks("h_a")(y if self._has_means else y.abs()).float()
        return y, self._bottleneck.quantize(z, step)

    def _analysis(self, x: Tensor, networks: Callable[[str], Network]) -> Routine:
        y, z_symbols = self._latents(x, networks)
        yield self._bottleneck.coding(z_symbols)
        scales, means = self._split(networks("h_s")(self._bottleneck.restore(z_symbols)))
        symbols = quantize_latent(y, means, limit=MAX_SYMBOL)
        yield Coding(self._tables, entropy_parameters(scales, self._thresholds), symbols)

    def _decompress(
        self, strings: list[list[bytes]], shape: torch.Size, size: tuple[int, int], networks: Callable[[str], Network]
    ) -> Tensor:
        z_symbols = self._bottleneck.decode(strings[1], shape)
        return self._executor.run(self._synthesis, z_symbols, *size, networks, host=Calls(strings[0]))

    def _synthesis(self, z_symbols: Tensor, height: int, width: int, networks: Callable[[str], Network]) -> Routine:
        scales, means = self._split(networks("h_s")(self._bottleneck.restore(z_symbols)))
        symbols = yield Coding(self._tables, entropy_parameters(scales, self._thresholds))
        return finished(self._transforms["g_s"](restore_latent(symbols, means)), height, width)

    def _split(self, prior: Tensor) -> tuple[Tensor, Tensor | None]:
        """(scales, means or None), channels innermost."""
        prior = prior.contiguous(memory_format=torch.channels_last)
        return prior.chunk(2, 1) if self._has_means else (prior, None)


class Bottleneck:
    """CompressAI's entropy bottleneck: a table per channel, around the channel's median."""

    def __init__(self, module: nn.Module) -> None:
        self.tables = coder_tables(module)
        self._medians = module.quantiles.detach()[:, 0, 1].reshape(-1, 1, 1)

    def quantize(self, x: Tensor, step: Tensor | None = None) -> Tensor:
        """``[N, C, H, W]`` float32 -> symbols, int32 contiguous. step: scalar, of the quantisation; None: 1."""
        x = x - self._medians
        symbols = (x if step is None else x / step).round_().to(torch.int32)
        # With one position `contiguous` would keep channels_last strides, by which torch chooses another algorithm
        # for what follows: other bits than in the decoder.
        return symbols.clone(memory_format=torch.contiguous_format)

    def restore(self, symbols: Tensor, step: Tensor | None = None) -> Tensor:
        """Symbols -> ``[N, C, H, W]`` float32 contiguous."""
        x = symbols.to(torch.float32)
        return (x if step is None else x * step) + self._medians

    def coding(self, symbols: Tensor) -> Coding:
        """The request to code `symbols`."""
        return Coding(self.tables, self._indexes(symbols.shape, symbols.device), symbols)

    def decode(self, strings: list[bytes], shape: torch.Size) -> Tensor:
        """Strings of pictures whose latent has `shape` -> symbols."""
        return decode_each(strings, self._indexes((len(strings), len(self._medians), *shape)), self.tables)

    @staticmethod
    def _indexes(shape: Sequence[int], device: torch.device | None = None) -> Tensor:
        rows = torch.arange(shape[1], dtype=torch.int16, device=device)
        return rows[None, :, None, None].expand(*shape).contiguous()


class Calls:
    """Answers a routine's requests: a string per picture and coding call.

    Args:
        given: when decoding: the strings of the one call that is still to be decoded.

    Attributes:
        strings: when encoding: a list per call.
        shape: of the first call's latent, height and width.
    """

    def __init__(self, given: list[bytes] | None = None) -> None:
        self._given = given
        self.strings: list[list[bytes]] = []
        self.shape = torch.Size()

    def __call__(self, request: Coding, out: Tensor | None) -> Tensor | None:
        if request.symbols is None:
            return decode_each(self._given, request.indexes, request.tables, out)
        self.shape = self.shape or request.symbols.shape[2:]
        self.strings.append(encode_each(request.symbols, request.indexes, request.tables))
        return None


def coder_tables(module: nn.Module) -> EntropyTables:
    """The integer tables that an entropy model of CompressAI holds."""
    return EntropyTables(module._quantized_cdf, module._cdf_length, module._offset)


def encode_each(symbols: Tensor, indexes: Tensor, tables: EntropyTables) -> list[bytes]:
    """One string per item of the batch."""
    return [encode(some, rows, tables) for some, rows in zip(symbols, indexes, strict=True)]


def decode_each(strings: list[bytes], indexes: Tensor, tables: EntropyTables, symbols: Tensor | None = None) -> Tensor:
    """The inverse of `encode_each`: int32, shape of `indexes`, into `symbols` where given."""
    symbols = torch.empty(indexes.shape, dtype=torch.int32) if symbols is None else symbols
    for string, rows, out in zip(strings, indexes, symbols, strict=True):
        decode(string, rows, tables, out=out)
    return symbols
