"""CompressAI's codecs with a gain per rate (arXiv 2402.18930)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sparsecodec.errors import BitstreamError, UsageError
from sparsecodec.models.inputs import check_quality
from sparsecodec.nn.routine import Coding
from sparsecodec.ops import entropy_parameters, quantize_latent
from sparsecodec.runtime.adapters.autoregressive import AutoregressiveCodec
from sparsecodec.runtime.adapters.compressai import MAX_SYMBOL, Calls, HyperpriorCodec, Network, decode_each
from sparsecodec.runtime.codec import finished
from sparsecodec.runtime.context_model import ContextModel, ContextRate, ContextRows, Offsets, why_no_offsets
from sparsecodec.runtime.numerics import Numerics, eager_numerics
from sparsecodec.runtime.settled import settled

STEP_NETWORKS = frozenset({"gayn2zqstep", "lower_bound_zqstep"})


@dataclass(frozen=True)
class Rate:
    """What one rate does to the latents.

    Attributes:
        scaled: whether the latent is multiplied by the gain (``stage=2``).
        gain: scalar float32 > 0.
        step: scalar float32 > 0. Quantisation step of the hyper-latent; None: 1.
    """

    scaled: bool
    gain: Tensor
    step: Tensor | None


class VariableRate(HyperpriorCodec):
    """The calls of a codec whose rate is chosen per picture.

    ``encode`` takes quality 0 to 100 to the nearest of the model's rates. A model with a step for its hyper-latent
    computes it with torch, so its files say so. Its tables for the hyper-latent are those that the model holds when it
    is compiled, whatever the rate: `update` it to a rate first if that is the only one.
    """

    def __init__(self, model: nn.Module, device: torch.device, dtype: torch.dtype, strict: bool) -> None:
        super().__init__(model, device, dtype, strict)
        self._steps = hasattr(self._model, "gayn2zqstep")
        self._bound = float(self._model.gaussian_conditional.lower_bound_scale.bound)

    @property
    def numerics(self) -> Numerics:
        return eager_numerics(self.device) if self._steps else super().numerics

    @settled
    def compress(self, x: Tensor, stage: int = 2, s: int = 1, inputscale: float | Tensor = 0) -> dict[str, Any]:
        """As the model's own; in float32 the very bytes.

        Args:
            x: ``[N, 3, H, W]`` floating point, finite, N at least 1, ceil(H / 16) and ceil(W / 16) multiples of 4.
            stage: 2, or 1 for the model without its gains.
            s: which of the model's gains.
            inputscale: > 0: this gain instead.

        Returns:
            ``strings``, a list per latent of N byte strings, and ``shape``, what `decompress` needs beside them.
        """
        rate = self._rate(stage, s, inputscale)
        self._check_picture(x)
        networks = self._network_of_strings
        strings, shape = self._compressing(x, lambda: self._code(x.to(self.device, torch.float32), networks, rate))
        return {"strings": strings, "shape": shape}

    @settled
    def decompress(
        self,
        strings: Sequence[Sequence[bytes]],
        shape: Sequence[int],
        stage: int = 2,
        s: int = 1,
        inputscale: float | Tensor = 0,
    ) -> dict[str, Tensor]:
        """As the model's own.

        Args:
            strings, shape: what `compress` of this codec or of the model itself gave.
            stage, s, inputscale: what `compress` was given.

        Returns:
            ``x_hat``: ``[N, 3, H, W]`` float32 in [0, 1].

        Raises:
            BitstreamError: a string is damaged or foreign.
        """
        rate = self._rate(stage, s, inputscale)
        size = self._check_strings(strings, shape)
        inputs = [list(some) for some in strings], torch.Size(shape), size, self._network_of_strings, rate
        return {"x_hat": self._decompressing(size, len(inputs[0][0]), lambda: self._restore(*inputs))}

    def _encode(self, x: Tensor, quality: float | None, size: tuple[int, int]) -> tuple[list[list[bytes]], int]:
        s = self._nearest_rate(quality)
        strings, _ = self._code(x, self._transforms.__getitem__, self._rate(2, s, 0))
        return [list(of_picture) for of_picture in zip(*strings, strict=True)], s

    def _decode(self, payloads: list[list[bytes]], quality: int, height: int, width: int) -> Tensor:
        gains = len(self._model.Gain)
        for of_picture in payloads:
            if len(of_picture) != 2 or quality >= gains:
                found = f"{len(of_picture)} payloads at rate {quality}"
                raise BitstreamError(f"{found} (this codec has 2, at 0 to {gains - 1})")
        shape = torch.Size((-(-height // self.STRIDE), -(-width // self.STRIDE)))
        strings, size = [list(of_latent) for of_latent in zip(*payloads, strict=True)], (height, width)
        return self._restore(strings, shape, size, self._transforms.__getitem__, self._rate(2, quality, 0))

    @abstractmethod
    def _code(self, x: Tensor, networks: Callable[[str], Network], rate: Rate) -> tuple[list[list[bytes]], torch.Size]:
        """As `_compress`, at a rate."""

    @abstractmethod
    def _restore(
        self,
        strings: list[list[bytes]],
        shape: torch.Size,
        size: tuple[int, int],
        networks: Callable[[str], Network],
        rate: Rate,
    ) -> Tensor:
        """As `_decompress`, at a rate."""

    def _nearest_rate(self, quality: float | None) -> int:
        """The number of the gain for a quality from 0 to 100."""
        return round(check_quality(quality) / 100 * (len(self._model.Gain) - 1))

    def _rate(self, stage: int, s: int, inputscale: float | Tensor) -> Rate:
        if stage not in (1, 2):
            raise UsageError(f"stage={stage} (needs 1 or 2)")
        gains = self._model.Gain
        if not 0 <= s < len(gains):
            raise UsageError(f"s={s} (needs 0 to {len(gains) - 1})")
        gain = torch.as_tensor(inputscale, dtype=torch.float32, device=self.device).reshape(())
        if not 0 <= gain < torch.inf:
            raise UsageError(f"inputscale={inputscale} (needs a finite number, 0 or above)")
        if gain == 0:
            gain = gains[s].abs()
        if stage == 1 or not self._steps:
            return Rate(stage == 2, gain, None)
        step = self._model.gayn2zqstep(1.0 / gain.view(1))
        return Rate(True, gain, self._model.lower_bound_zqstep(step)[0])

    def _dequantize(self, symbols: Tensor, scales: Tensor, gain: Tensor) -> Tensor:
        """Symbols -> where in its interval each is taken to be; 0 stays 0. scales: like symbols, with the gain."""
        if self._model.no_quantoffset:
            return symbols
        deviation = scales.clamp(min=self._bound)
        offset = self._model.QuantABCD(torch.stack((deviation, gain.expand(deviation.shape)), -1)).squeeze(-1)
        return symbols.sign() * (symbols.abs() - offset)


class VariableRateCodec(VariableRate):
    """bmshj2018-hyperprior-vbr and mbt2018-mean-vbr."""

    CHILDREN: ClassVar = HyperpriorCodec.CHILDREN | {"QuantABCD"}

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        children = {name for name, _ in model.named_children()} - {"portable"}
        return children in (cls.CHILDREN, cls.CHILDREN | STEP_NETWORKS)

    def _code(self, x: Tensor, networks: Callable[[str], Network], rate: Rate) -> tuple[list[list[bytes]], torch.Size]:
        """As `_compress`, at a rate."""
        y, z_symbols = self._latents(x, networks, rate.step)
        calls = Calls()
        calls(self._bottleneck.coding(z_symbols.cpu()), None)
        scales, means = self._split(networks("h_s")(self._bottleneck.restore(z_symbols, rate.step)))
        if rate.scaled:
            y, scales = y * rate.gain, scales * rate.gain
            means = means if means is None else means * rate.gain
        symbols = quantize_latent(y, means, limit=MAX_SYMBOL)
        calls(Coding(self._tables, entropy_parameters(scales, self._thresholds).cpu(), symbols.cpu()), None)
        return calls.strings[::-1], calls.shape

    def _restore(
        self,
        strings: list[list[bytes]],
        shape: torch.Size,
        size: tuple[int, int],
        networks: Callable[[str], Network],
        rate: Rate,
    ) -> Tensor:
        """As `_decompress`, at a rate."""
        z_symbols = self._bottleneck.decode(strings[1], shape).to(self.device)
        scales, means = self._split(networks("h_s")(self._bottleneck.restore(z_symbols, rate.step)))
        if rate.scaled:
            scales = scales * rate.gain
        indexes = entropy_parameters(scales, self._thresholds).cpu()
        y_hat = decode_each(strings[0], indexes, self._tables).to(self.device, torch.float32)
        if rate.scaled:
            y_hat = self._dequantize(y_hat, scales, rate.gain) / rate.gain
        if means is not None:
            y_hat = y_hat + means
        return finished(self._transforms["g_s"](y_hat), *size)


class VariableRateContextCodec(VariableRate, AutoregressiveCodec):
    """mbt2018-vbr: as `AutoregressiveCodec`, with a network that moves each decoded value before it is context."""

    CHILDREN: ClassVar = AutoregressiveCodec.CHILDREN | {"QuantABCD", "scale_to_context"}

    @staticmethod
    def _why_not_native(model: nn.Module, device: torch.device) -> str:
        reason = AutoregressiveCodec._why_not_native(model, device)
        return reason or ("" if model.no_quantoffset else why_no_offsets(model.QuantABCD))

    @staticmethod
    def _offsets(model: nn.Module) -> Offsets | None:
        if model.no_quantoffset:
            return None
        return Offsets(model.QuantABCD, float(model.gaussian_conditional.lower_bound_scale.bound))

    def _code(self, x: Tensor, networks: Callable[[str], Network], rate: Rate) -> tuple[list[list[bytes]], torch.Size]:
        return self._compress(x, networks, rate)

    def _restore(
        self,
        strings: list[list[bytes]],
        shape: torch.Size,
        size: tuple[int, int],
        networks: Callable[[str], Network],
        rate: Rate,
    ) -> Tensor:
        return self._decompress(strings, shape, size, networks, rate)

    def _context_rate(self, context: ContextModel, rate: Rate) -> ContextRate:
        shift = self._shift(rate)
        if shift is not None and not isinstance(context, ContextRows):
            # Files must not depend on how torch adds the two terms.
            layer = self._model.scale_to_context
            shift = layer.weight[:, 0] * rate.gain + layer.bias
        return ContextRate(float(rate.gain), rate.scaled, shift)

    def _rounded(self, y: Tensor, means: Tensor, rate: Rate) -> Tensor:
        return ((y - means) * rate.gain if rate.scaled else y - means).round()

    def _rows_at(self, scales: Tensor, rate: Rate) -> Tensor:
        return self._table_rows(scales * rate.gain)

    def _moved(self, symbols: Tensor, scales: Tensor, means: Tensor, rate: Rate) -> Tensor:
        if not rate.scaled:
            return symbols + means
        return self._dequantize(symbols, scales * rate.gain, rate.gain) * (1.0 / rate.gain) + means

    def _shift(self, rate: Rate) -> Tensor | None:
        if not (rate.scaled and self._model.scl2ctx):
            return None
        return self._model.scale_to_context(rate.gain.view(1, 1)).view(1, -1, 1, 1)
