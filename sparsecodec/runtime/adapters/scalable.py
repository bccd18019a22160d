"""EVC with several encoders for one decoder: encoding may choose how many of them to run (arXiv 2302.05071)."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from sparsecodec.models.steps import round_step
from sparsecodec.nn import DualPriorCoder
from sparsecodec.nn.routine import Routine, pushing, unasked
from sparsecodec.runtime.adapters.evc import EVCCodec
from sparsecodec.runtime.settled import settled


class ScalableEVCCodec(EVCCodec):
    """Compiled scalable EVC. Whatever prefix of the encoders made a file, decoding is that of `EVCCodec`."""

    def __init__(self, model: nn.Module, device: torch.device, dtype: torch.dtype, strict: bool) -> None:
        self.ENCODERS = tuple(f"encs.{k}" for k in range(len(model.encs)))
        self.ANALYSIS = (*self.ENCODERS, "hyper_enc")
        self.ENCODING = (*self.ANALYSIS, *self.ENTROPY, *self.SYNTHESIS)
        super().__init__(model, device, dtype, strict)

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        parts = ("encs", "dec", "hyper_enc", "hyper_dec", "y_prior_fusion", "y_spatial_prior", "bit_estimator_z")
        return all(hasattr(model, name) for name in (*parts, "q_basic", "q_scale", "cost", "check_prefix"))

    def input_shapes(self, height: int, width: int) -> dict[str, tuple[int, int, int, int]]:
        shapes = super().input_shapes(height, width)
        return {**dict.fromkeys(self.ENCODERS, shapes.pop("enc")), **shapes}

    def set_rate(self, rate: int | None) -> None:
        """As the model's own."""
        self._model.set_rate(rate)

    def encode(
        self,
        x: Tensor,
        quality: float | None = None,
        tile: int | None = None,
        overlap: int | None = None,
        max_memory: int | None = None,
        prefix: int | None = None,
    ) -> bytes:
        """One picture of any size to a file's bytes.

        Args:
            x: ``[1, 3, H, W]`` floating point in [0, 1], H and W at least 1.
            quality: 0 (smallest) to 100 (best); None is 50.
            tile, overlap, max_memory: as for `CompiledCodec.encode`.
            prefix: run the encoders 0 to `prefix`; 0 is the fastest. None codes each tile with every prefix and keeps
                the bytes with the least rate-distortion cost, measured on what will be decoded.

        Raises:
            UsageError: wrong shape, dtype or range, or no such encoder.
        """

        return self._file(x, functools.partial(self._encode, prefix=prefix), quality, tile, overlap, max_memory)

    def _encode(
        self, x: Tensor, quality: float | None, size: tuple[int, int], prefix: int | None = None
    ) -> tuple[list[list[bytes]], int]:
        q_scale = self._q_scale(quality)
        best = [self._best(one, q_scale, self._coder, prefix, size, False) for one in x.split(1)]
        return [[payload] for payload, _, _ in best], round(q_scale * 100)

    @settled
    def compress(self, x: Tensor, q_scale: float, prefix: int | None = None) -> dict[str, Any]:
        """As the model's own: ``[1, 3, H, W]``, sides multiples of 64 -> ``bit_stream``, ``x_hat``, ``prefix``."""
        self._check_padded(x)
        inputs = x, round_step(q_scale), self._original_coder, prefix, (x.shape[2], x.shape[3]), True
        payload, x_hat, used = self._compressing(x, lambda: self._best(*inputs))
        return {"bit_stream": payload, "x_hat": x_hat, "prefix": used}

    def _best(
        self,
        x: Tensor,
        q_scale: float,
        coder: DualPriorCoder,
        prefix: int | None,
        size: tuple[int, int],
        reconstruct: bool,
    ) -> tuple[bytes, Tensor | None, int]:
        """(payload, picture, prefix); the choice looks at the upper left `size` of the padded picture `x`."""
        if prefix is None:
            first, last, reconstruct = 0, len(self.ENCODERS) - 1, True
        else:
            first = last = self._model.check_prefix(prefix)
        gain = self._gain(q_scale)
        candidates = []
        for k, y in enumerate(self._executor.run(self._latents, x, first, last, host=unasked), first):
            encoder = self._encoder(x.shape[2], x.shape[3])
            x_hat = self._executor.run(self._coding, y, gain, coder, reconstruct, host=pushing(encoder))
            candidates.append((encoder.finish(), x_hat, k))
        if len(candidates) == 1:
            return candidates[0]
        height, width = size
        original = x[:, :, :height, :width].to(self.device)

        def cost(candidate: tuple[bytes, Tensor, int]) -> float:
            payload, x_hat, _ = candidate
            return self._model.cost(payload, x_hat[:, :, :height, :width], original, q_scale)

        return min(candidates, key=cost)

    def _latents(self, x: Tensor, first: int, last: int) -> Routine:
        """The transform latents of the prefixes `first` to `last`, each ``[1, C, H/16, W/16]`` float32."""
        yield from ()
        total, latents = 0.0, []
        for k in range(last + 1):
            total = total + self._transforms[self.ENCODERS[k]](x).float()
            latents.append(total / (k + 1))
        return tuple(latents[first:])
