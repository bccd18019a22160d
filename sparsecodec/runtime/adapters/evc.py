"""EVC: two coding passes over a checkerboard, variable rate by a global step (arXiv 2302.05071)."""

from __future__ import annotations

import math
import time
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sparsecodec.entropy import Decoder, DecoderGroup, Encoder, EncoderGroup, evc_gaussian_tables
from sparsecodec.errors import BitstreamError, UsageError
from sparsecodec.models.frame_scripts import SingleFrames
from sparsecodec.models.inputs import check_finite, check_picture, check_quality
from sparsecodec.models.steps import round_step
from sparsecodec.nn import DualPrior, DualPriorCoder, factorized_tables, lower_bound
from sparsecodec.nn.dual_prior import PASSES, STREAMS
from sparsecodec.nn.routine import Routine, pulling, pushing
from sparsecodec.ops import evc_scale_thresholds
from sparsecodec.runtime.codec import CompiledCodec, finished
from sparsecodec.runtime.settled import settled

STEP_MIN = 0.5


class EVCCodec(SingleFrames, CompiledCodec):
    """Compiled EVC; ``compress``, ``decompress``, ``encode_decode`` and ``update`` as the family's."""

    SYNTHESIS: ClassVar = ("dec",)
    ANALYSIS: ClassVar = ("enc", "hyper_enc")
    ENTROPY: ClassVar = ("hyper_dec", "y_prior_fusion", "y_spatial_prior")

    def __init__(self, model: nn.Module, device: torch.device, dtype: torch.dtype, strict: bool) -> None:
        super().__init__(model, device, dtype, strict)
        # Logarithms at quality 0 and 100, read once: a GPU would be waited for.
        self._log_steps = tuple(float(model.q_scale.detach().float().flatten()[i].log()) for i in (0, -1))
        model = self._model
        with torch.no_grad():
            self._q_basic = lower_bound(model.q_basic, STEP_MIN).flatten()
        self._latent = model.q_basic.shape[1]
        self._coder, self._original_coder = self._coders(model)

    def _coders(self, model: nn.Module) -> tuple[DualPriorCoder, DualPriorCoder]:
        """(of files, of the family's own strings), of which the latter use tables that the model has adopted."""
        computed = evc_gaussian_tables(), factorized_tables(model.bit_estimator_z, self._latent)
        networks = [self._transforms[path] for path in self.ENTROPY]
        head = networks[-1] if networks[-1].has_head else None
        original = DualPrior(model.hyper_dec, model.y_prior_fusion, model.y_spatial_prior)
        pairs = (DualPrior(*networks, head), computed), (original, model.tables())
        return tuple(DualPriorCoder(prior, *tables, self.device) for prior, tables in pairs)

    def _encoder(self, height: int, width: int) -> Encoder:
        """What takes the symbols of a padded picture of that size."""
        return Encoder(STREAMS)

    def _decoder(self, payload: bytes, height: int, width: int) -> Decoder:
        """What reads them."""
        return Decoder(payload, STREAMS)

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        parts = ("enc", "dec", "hyper_enc", "hyper_dec", "y_prior_fusion", "y_spatial_prior", "bit_estimator_z")
        return all(hasattr(model, name) for name in (*parts, "q_basic", "q_scale"))

    def _head(self, path: str) -> dict[str, Any] | None:
        if path != "y_spatial_prior":
            return None
        return {"thresholds": evc_scale_thresholds().to(self.device), "part": PASSES[1], "order": "by_group"}

    def input_shapes(self, height: int, width: int) -> dict[str, tuple[int, int, int, int]]:
        c, h, w = self._latent, height // 16, width // 16
        return {
            "enc": (1, 3, height, width),
            "hyper_enc": (1, c, h, w),
            "hyper_dec": (1, c, h // 4, w // 4),
            "y_prior_fusion": (1, c, h, w),
            "y_spatial_prior": (1, 4 * c, h, w),
            "dec": (1, c, h, w),
        }

    @settled
    def compress(self, x: Tensor, q_scale: float) -> dict[str, Any]:
        """As the model's own: ``[1, 3, H, W]`` with sides that are multiples of 64 -> ``bit_stream``, ``x_hat``."""
        self._check_padded(x)
        inputs = x, round_step(q_scale), self._original_coder, True
        (payload,), x_hat = self._compressing(x, lambda: self._analyse(*inputs))
        return {"bit_stream": payload, "x_hat": x_hat}

    @settled
    def decompress(self, bit_stream: bytes, height: int, width: int, q_scale: float) -> dict[str, Any]:
        """As the model's own: payload -> ``x_hat``, padded, and ``dec_time`` until this returns."""
        start = time.perf_counter()
        if height < 1 or width < 1:
            raise UsageError(f"picture of {height} x {width} (needs at least 1 x 1)")
        padded = tuple(side + -side % self.STRIDE for side in (height, width))
        inputs = [bit_stream], round_step(q_scale), *padded, self._original_coder
        x_hat = self._decompressing(padded, 1, lambda: self._synthesise(*inputs))
        return {"x_hat": x_hat, "dec_time": time.perf_counter() - start}

    def _analyse(
        self, x: Tensor, q_scale: float, coder: DualPriorCoder, reconstruct: bool
    ) -> tuple[list[bytes], Tensor | None]:
        """``[N, 3, H, W]`` -> a payload for each, and the pictures as they will be decoded if asked for."""
        encoder = EncoderGroup(self._encoder(x.shape[2], x.shape[3]) for _ in x)
        inputs = (x, self._gain(q_scale), coder, reconstruct)
        x_hat = self._executor.run(self._analysis, *inputs, host=pushing(encoder))
        return encoder.finish(), x_hat

    def _analysis(self, x: Tensor, gain: Tensor, coder: DualPriorCoder, reconstruct: bool) -> Routine:
        return (yield from self._coding(self._transforms["enc"](x).float(), gain, coder, reconstruct))

    def _coding(self, y: Tensor, gain: Tensor, coder: DualPriorCoder, reconstruct: bool) -> Routine:
        """From the transform latents ``[N, C, H/16, W/16]`` float32 on."""
        y = self._normalised(y, gain).contiguous(memory_format=torch.channels_last)  # torch layers may choose
        y_hat = yield from coder.encoding(y, self._transforms["hyper_enc"](y).float(), gain)
        return self._picture(y_hat, 16 * y.shape[2], 16 * y.shape[3]) if reconstruct else None

    def _gain(self, q_scale: float) -> Tensor:
        """``[C]``: what a channel of the latent is divided by before it is coded."""
        return self._q_basic * q_scale

    @staticmethod
    def _normalised(y: Tensor, gain: Tensor) -> Tensor:
        return y / gain.view(-1, 1, 1)

    def _picture(self, y_hat: Tensor, height: int, width: int) -> Tensor:
        return finished(self._transforms["dec"](y_hat), height, width)

    def _synthesise(
        self, payloads: list[bytes], q_scale: float, height: int, width: int, coder: DualPriorCoder
    ) -> Tensor:
        z_shape = (len(payloads), self._latent, -(-height // self.STRIDE), -(-width // self.STRIDE))
        padded = self.STRIDE * z_shape[2], self.STRIDE * z_shape[3]
        decoder = DecoderGroup(self._decoder(payload, *padded) for payload in payloads)
        inputs = (coder.decode_z(decoder, z_shape), self._gain(q_scale), coder, height, width)
        x_hat = self._executor.run(self._synthesis, *inputs, host=pulling(decoder))
        decoder.finish()
        return x_hat

    def _synthesis(self, z_symbols: Tensor, gain: Tensor, coder: DualPriorCoder, height: int, width: int) -> Routine:
        y_hat = yield from coder.decoding(z_symbols, gain)
        return self._picture(y_hat, height, width)

    def _encode(self, x: Tensor, quality: float | None, size: tuple[int, int]) -> tuple[list[list[bytes]], int]:
        q_scale = self._q_scale(quality)
        payloads, _ = self._analyse(x, q_scale, self._coder, False)
        return [[payload] for payload in payloads], round(q_scale * 100)

    def _q_scale(self, quality: float | None) -> float:
        low, high = self._log_steps
        return round_step(math.exp(low + (high - low) * check_quality(quality) / 100))

    def _decode(self, payloads: list[list[bytes]], quality: int, height: int, width: int) -> Tensor:
        for of_picture in payloads:
            if len(of_picture) != 1 or not quality:
                found = f"{len(of_picture)} payloads at step {quality}/100"
                raise BitstreamError(f"{found} (EVC has one, at a positive step)")
        return self._synthesise([payload for (payload,) in payloads], quality / 100, height, width, self._coder)

    def _check_padded(self, x: Tensor) -> None:
        check_picture(x, self.STRIDE, batch=1)
        check_finite(x, "picture")
