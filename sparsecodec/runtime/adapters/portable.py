"""Codecs whose streams hold the same symbols on every device: integers from the bytes to the symbols."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor, nn

from sparsecodec.entropy import DecoderGroup, EncoderGroup, EntropyTables, evc_gaussian_tables
from sparsecodec.entropy.lanes import LaneDecoder, LaneEncoder, payload_symbols
from sparsecodec.entropy.lanes_cuda import CudaLaneDecoder, LaneWords, decodes_on, lane_words, require_end
from sparsecodec.errors import BitstreamError, UsageError
from sparsecodec.nn.dual_prior import DualPriorCoder
from sparsecodec.nn.integer_prior import (
    ONE,
    SYMBOL_LIMIT,
    ExactPriorCoder,
    IntegerPriorCoder,
    as_float,
    fixed_gain,
    fixed_point,
    narrowed,
    row_finder,
    table_rows,
)
from sparsecodec.nn.routine import Coding, Routine, drive_on_device, pulling, pushing, unasked
from sparsecodec.ops import quantize_latent, restore_latent
from sparsecodec.quant import is_exact
from sparsecodec.runtime.adapters.compressai import FactorizedCodec, HyperpriorCodec, Network
from sparsecodec.runtime.adapters.evc import EVCCodec
from sparsecodec.runtime.adapters.scalable import ScalableEVCCodec
from sparsecodec.runtime.adapters.variable_rate import VariableRateCodec
from sparsecodec.runtime.codec import finished
from sparsecodec.runtime.integer_network import IntegerNetwork
from sparsecodec.runtime.numerics import PORTABLE, Numerics
from sparsecodec.runtime.transform import CompiledTransform, EagerTransform


class Portable:
    """What a family's compiled codec becomes with ``stream="portable"``; stands before it among the base classes.

    An entropy network's path may join several with ``+``: they run as one.
    """

    @property
    def portable_model(self) -> nn.Module:
        """The model whose integers this codec computes with, for `zoo.save`."""
        return self._model

    @property
    def numerics(self) -> Numerics:
        return PORTABLE

    def _is_exact(self, path: str) -> bool:
        return path in self.ENTROPY

    def _compiled(self, path: str, strict: bool) -> CompiledTransform | EagerTransform:
        if not self._is_exact(path):
            return super()._compiled(path, strict)
        parts = {part: self._model.get_submodule(part) for part in path.split("+")}
        return IntegerNetwork(parts, strict=strict)

    def _on_device(self, payloads: list[bytes], total: int, routine: Callable[..., Routine], *inputs: Any) -> Tensor:
        """Runs `routine`, which decodes all of the payloads, without leaving the device: one graph, coder included."""
        words = lane_words(payloads, total).to(self.device)
        inputs = (total, routine, *words, *inputs)
        x_hat, faults, cursors, states = self._executor.run(self._unpacked, *inputs, host=unasked)
        require_end(words._replace(cursors=cursors, states=states), faults, len(faults) // len(payloads))
        return x_hat

    @staticmethod
    def _unpacked(total: int, routine: Callable[..., Routine], *inputs: Any) -> Routine:
        """`inputs`: those of `LaneWords`, then those of `routine`."""
        yield from ()
        words = LaneWords(*inputs[: len(LaneWords._fields)])
        words = words._replace(cursors=words.cursors.clone(), states=words.states.clone())  # inputs stay as they are
        decoder = CudaLaneDecoder(words, total)
        x_hat = drive_on_device(routine(*inputs[len(words) :]), decoder)
        return x_hat, decoder.faults, words.cursors, words.states

    def _notes(self) -> tuple[str, ...]:
        precision = str(self.dtype).removeprefix("torch.")
        if self.exact_pictures:
            networks, pictures = f"analysis in {precision}, all that decodes in integers", "the same on every device"
        else:
            networks = f"analysis and synthesis in {precision}, entropy networks{self._on_integers()} in integers"
            pictures = "up to the rounding of the synthesis, which floating point leaves to the device"
        return networks, f"stream portable: {PORTABLE.name}", f"pictures: {pictures}"

    def compress(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not for portable codecs: the family's own strings hold the family's own arithmetic."""
        raise UsageError("compress: a portable codec has encode and decode only (compile with stream='native')")

    def decompress(self, *args: Any, **kwargs: Any) -> NoReturn:
        """As `compress`."""
        raise UsageError("decompress: a portable codec has encode and decode only (compile with stream='native')")


class PortableEVCCodec(Portable, EVCCodec):
    """EVC with portable streams; with exact pictures, too, if its synthesis is on dyadic integers."""

    ENTROPY: ClassVar = ("hyper_dec+y_prior_fusion", "y_spatial_prior")

    def __init__(self, model: nn.Module, device: torch.device, dtype: torch.dtype, strict: bool) -> None:
        self.exact_pictures = is_exact(model)
        super().__init__(model, device, dtype, strict)

    def _is_exact(self, path: str) -> bool:
        return super()._is_exact(path) or (self.exact_pictures and path in self.SYNTHESIS)

    def _coders(self, model: nn.Module) -> tuple[DualPriorCoder, DualPriorCoder]:
        stored, (parameters, spatial) = model.portable, (self._transforms[path] for path in self.ENTROPY)
        tables = evc_gaussian_tables(), stored.tables()
        kind = ExactPriorCoder if self.exact_pictures else IntegerPriorCoder
        coder = kind(parameters, spatial, *tables, stored.z_medians, stored.thresholds, self.device)
        return coder, coder

    def _gain(self, q_scale: float) -> Tensor:
        """With exact pictures fixed-point, int64."""
        if not self.exact_pictures:
            return super()._gain(q_scale)
        return fixed_gain(self._q_basic, round(q_scale * 100))

    def _normalised(self, y: Tensor, gain: Tensor) -> Tensor:
        return super()._normalised(y, as_float(gain) if self.exact_pictures else gain)

    def _picture(self, y_hat: Tensor, height: int, width: int) -> Tensor:
        if not self.exact_pictures:
            return super()._picture(y_hat, height, width)
        network = self._transforms["dec"]
        picture = network(narrowed(y_hat, network.exponent))
        return finished(as_float(picture.clamp(0, ONE)), height, width)

    def _encoder(self, height: int, width: int) -> LaneEncoder:
        return LaneEncoder(self._symbols(height, width))

    def _decoder(self, payload: bytes, height: int, width: int) -> LaneDecoder:
        return LaneDecoder(payload, self._symbols(height, width))

    def _symbols(self, height: int, width: int) -> int:
        """Of a padded picture: of the latent and of the hyper-latent."""
        return payload_symbols(self._latent * (height // 16 * (width // 16) + height // 64 * (width // 64)))

    def _synthesise(
        self, payloads: list[bytes], q_scale: float, height: int, width: int, coder: DualPriorCoder
    ) -> Tensor:
        if not decodes_on(self.device):
            return super()._synthesise(payloads, q_scale, height, width, coder)
        size = tuple(-(-side // self.STRIDE) for side in (height, width))
        total = self._symbols(*(side * self.STRIDE for side in size))
        inputs = (len(payloads), size, self._gain(q_scale), coder, height, width)
        return self._on_device(payloads, total, self._whole_synthesis, *inputs)

    def _whole_synthesis(
        self, pictures: int, size: tuple[int, int], gain: Tensor, coder: DualPriorCoder, height: int, width: int
    ) -> Routine:
        z_symbols = yield coder.z_request(size, self.device, pictures)
        return (yield from self._synthesis(z_symbols, gain, coder, height, width))


class PortableScalableEVCCodec(PortableEVCCodec, ScalableEVCCodec):
    """Scalable EVC with portable streams."""


class _OnePayload(Portable):
    """A codec of CompressAI's: all coding calls of a picture share one payload. Its rate is the file's quality."""

    _rates = 1

    @abstractmethod
    def _symbols(self, height: int, width: int) -> int:
        """Of a padded picture, over all latents."""

    def _nearest_rate(self, quality: float | None) -> int:
        """The number of the rate for a quality."""
        if quality is not None:
            raise UsageError(f"quality={quality} ({type(self._model).__name__} has one rate; needs None)")
        return 0

    def _of_rate(self, rate: int) -> tuple[Tensor, ...]:
        """The last inputs of the routines: tensors, so that another rate is other data and no other graph."""
        return ()

    def _encode(self, x: Tensor, quality: float | None, size: tuple[int, int]) -> tuple[list[list[bytes]], int]:
        rate = self._nearest_rate(quality)
        encoder = EncoderGroup(LaneEncoder(self._symbols(x.shape[2], x.shape[3])) for _ in x)
        self._executor.run(self._analysis, x, *self._of_rate(rate), host=pushing(encoder))
        return [[payload] for payload in encoder.finish()], rate

    def _decode(self, payloads: list[list[bytes]], quality: int, height: int, width: int) -> Tensor:
        for of_picture in payloads:
            if len(of_picture) != 1 or quality >= self._rates:
                found = f"{len(of_picture)} payloads at quality {quality}"
                known = "0" if self._rates == 1 else f"0 to {self._rates - 1}"
                raise BitstreamError(f"{found} (this portable stream has one, at {known})")
        of_rate = self._of_rate(quality)
        rows, columns = (-(-side // self.STRIDE) for side in (height, width))
        total = self._symbols(rows * self.STRIDE, columns * self.STRIDE)
        z_shape = (len(payloads), len(self._medians), rows, columns)
        if decodes_on(self.device):
            whole = [payload for (payload,) in payloads]
            return self._on_device(whole, total, self._whole_synthesis, z_shape, height, width, *of_rate)
        decoder = DecoderGroup(LaneDecoder(payload, total) for (payload,) in payloads)
        first = decoder.decode(self._bottleneck._indexes(z_shape), self._z_tables)
        x_hat = self._executor.run(self._synthesis, first, height, width, *of_rate, host=pulling(decoder))
        decoder.finish()
        return x_hat

    def _whole_synthesis(self, z_shape: tuple[int, ...], height: int, width: int, *of_rate: Tensor) -> Routine:
        symbols = yield Coding(self._z_tables, self._bottleneck._indexes(z_shape, self.device))
        return (yield from self._synthesis(symbols, height, width, *of_rate))

    def _take_integers(self, stored: nn.Module) -> None:
        """Uses the stored tables."""
        self._z_tables: EntropyTables = stored.tables()
        self._medians = stored.z_medians.to(self.device).view(-1, 1, 1)

    def _coding_first(self, latent: Tensor) -> tuple[Tensor, Coding]:
        """(symbols, the request to code them) of what is coded under the factorised tables."""
        symbols = quantize_latent(latent, as_float(self._medians).expand_as(latent), limit=SYMBOL_LIMIT - 1)
        return symbols, Coding(self._z_tables, self._bottleneck._indexes(symbols.shape, symbols.device), symbols)


class PortableFactorizedCodec(_OnePayload, FactorizedCodec):
    """CompressAI's factorized prior with portable streams."""

    def __init__(self, model: nn.Module, device: torch.device, dtype: torch.dtype, strict: bool) -> None:
        super().__init__(model, device, dtype, strict)
        self._take_integers(self._model.portable)

    def _symbols(self, height: int, width: int) -> int:
        return payload_symbols(self._latent * (height // 16) * (width // 16))

    def _analysis(self, x: Tensor, networks: Callable[[str], Network] | None = None) -> Routine:
        _, request = self._coding_first(self._transforms["g_a"](x).float())
        yield request

    def _synthesis(self, symbols: Tensor, height: int, width: int) -> Routine:
        yield from ()
        y_hat = as_float(fixed_point(symbols, self._medians))
        return finished(self._transforms["g_s"](y_hat), height, width)


class _Hyperprior(_OnePayload):
    """A codec with a hyper-latent, whose synthesis is on integers."""

    def __init__(self, model: nn.Module, device: torch.device, dtype: torch.dtype, strict: bool) -> None:
        super().__init__(model, device, dtype, strict)
        self._take_integers(self._model.portable)
        self._stored_thresholds = self._model.portable.thresholds

    def _symbols(self, height: int, width: int) -> int:
        latent, hyper_latent = (height // side * (width // side) for side in (16, 64))
        return payload_symbols(self._latent * latent + self._hyper_latent * hyper_latent)

    def _latents_coding(self, x: Tensor) -> Routine:
        """Codes the hyper-latents of pictures; returns (the latents, the symbols of the hyper-latents)."""
        y = self._transforms["g_a"](x).float()
        z_symbols, request = self._coding_first(self._transforms["h_a"](y if self._has_means else y.abs()).float())
        yield request
        return y, z_symbols

    def _prior(self, z_symbols: Tensor) -> tuple[Tensor, Tensor | None]:
        """(scales of y, fixed-point, and its means in float32 or None)."""
        network = self._transforms["h_s"]
        prior = network(narrowed(fixed_point(z_symbols, self._medians), network.exponent))
        scales, means = prior.chunk(2, 1) if self._has_means else (prior, None)
        return scales, None if means is None else as_float(means)


class PortableHyperpriorCodec(_Hyperprior, HyperpriorCodec):
    """CompressAI's hyperpriors of one rate without a context model, with portable streams."""

    def __init__(self, model: nn.Module, device: torch.device, dtype: torch.dtype, strict: bool) -> None:
        super().__init__(model, device, dtype, strict)
        self._table_rows = row_finder(self._stored_thresholds)

    def _analysis(self, x: Tensor, networks: Callable[[str], Network] | None = None) -> Routine:
        y, z_symbols = yield from self._latents_coding(x)
        scales, means = self._prior(z_symbols)
        yield Coding(self._tables, self._table_rows(scales), quantize_latent(y, means, limit=SYMBOL_LIMIT - 1))

    def _synthesis(self, z_symbols: Tensor, height: int, width: int) -> Routine:
        scales, means = self._prior(z_symbols)
        symbols = yield Coding(self._tables, self._table_rows(scales))
        return finished(self._transforms["g_s"](restore_latent(symbols, means)), height, width)


class PortableVariableRateCodec(_Hyperprior, VariableRateCodec):
    """Those with a gain per rate, which multiplies nothing between bytes and symbols: each has its thresholds."""

    _nearest_rate = VariableRateCodec._nearest_rate

    def __init__(self, model: nn.Module, device: torch.device, dtype: torch.dtype, strict: bool) -> None:
        super().__init__(model, device, dtype, strict)
        self._gains = self._model.Gain.abs()
        self._rates = len(self._gains)

    def _of_rate(self, rate: int) -> tuple[Tensor, ...]:
        """(thresholds, gain)."""
        return self._stored_thresholds[rate], self._gains[rate]

    def _analysis(self, x: Tensor, thresholds: Tensor, gain: Tensor) -> Routine:
        y, z_symbols = yield from self._latents_coding(x)
        scales, means = self._prior(z_symbols)
        symbols = quantize_latent(y * gain, None if means is None else means * gain, limit=SYMBOL_LIMIT - 1)
        yield Coding(self._tables, table_rows(scales, thresholds), symbols)

    def _synthesis(self, z_symbols: Tensor, height: int, width: int, thresholds: Tensor, gain: Tensor) -> Routine:
        scales, means = self._prior(z_symbols)
        symbols = yield Coding(self._tables, table_rows(scales, thresholds))
        y_hat = self._dequantize(symbols.to(torch.float32), as_float(scales) * gain, gain) / gain
        return finished(self._transforms["g_s"](y_hat if means is None else y_hat + means), height, width)
