"""What image codecs with a dual spatial prior share, EVC and DCVC-HEM's for single frames: rates, estimate, coding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sparsecodec.entropy import EntropyTables, evc_gaussian_tables
from sparsecodec.models.adopting import Adopting
from sparsecodec.models.codec import Codec, rates_of
from sparsecodec.models.inputs import check_coded, check_float32, check_size
from sparsecodec.models.steps import check_global_step, first_anchors, round_step, spaced_steps
from sparsecodec.nn import (
    BitEstimator,
    CodingLayout,
    DualPrior,
    DualPriorCoder,
    factorized_tables,
    gaussian_likelihood,
    lower_bound,
)

STRIDE = 64  # of the hyper-latent: pictures are padded to multiples of it


class DualPriorImage(Adopting, Codec):
    """Base of those codecs. A subclass adds `enc`, `dec`, the networks that `prior` names, then `_add_rates`."""

    LAYOUT: ClassVar = CodingLayout()
    TABLES = ("gaussian_encoder", "bit_estimator_z")

    def _add_rates(self, latent: int) -> None:
        """What follows from the number of channels of the latent and of the hyper-latent."""
        self.latent_channels = latent
        self.bit_estimator_z = BitEstimator(latent)
        self.q_basic = nn.Parameter(torch.ones(1, latent, 1, 1))
        self.q_scale = nn.Parameter(first_anchors())

    def q_scales(self, count: int) -> list[float]:
        """`count` global quantisation steps from the lowest to the highest rate: see `spaced_steps`."""
        return spaced_steps(self.q_scale, count)

    round_q_scale = staticmethod(round_step)

    def curr_q(self, q_scale: Tensor | float) -> Tensor:
        """Channel-wise step of the transform latent: ``max(q_basic, 0.5) * q_scale``, ``[1 or N, C, 1, 1]``."""
        return lower_bound(self.q_basic, 0.5) * q_scale

    @property
    def prior(self) -> DualPrior:
        """The networks between the hyper-latent and the tables."""
        return DualPrior(self.hyper_dec, self.y_prior_fusion, self.y_spatial_prior)

    def tables(self) -> tuple[EntropyTables, EntropyTables]:
        """Of the latent and of the hyper-latent: adopted ones, or computed from the present weights, on the CPU."""
        return self._adopted or (evc_gaussian_tables(), factorized_tables(self.bit_estimator_z, self._hyper_channels))

    @property
    def _hyper_channels(self) -> int:
        return self.bit_estimator_z.f1.h.shape[1]

    def coder(self) -> DualPriorCoder:
        """What codes the latents, with the tables of the present weights.

        Raises:
            UsageError: the weights are not float32.
        """
        check_float32(self.hyper_dec)
        prior = DualPrior(*map(contiguous, (self.hyper_dec, self.y_prior_fusion, self.y_spatial_prior)))
        return DualPriorCoder(prior, *self.tables(), self.q_basic.device, self.LAYOUT)

    def synthesise(self, y_hat: Tensor) -> Tensor:
        """``[N, C, H/16, W/16]``, times step and gain -> picture ``[N, 3, H, W]``, not yet in [0, 1]."""
        return self.dec(y_hat)

    def _code(self, x: Tensor, y: Tensor, q_scale: Tensor | float) -> dict[str, Any]:
        """`forward` from the transform latent `y` on, ``[N, C, H/16, W/16]``."""
        check_global_step(q_scale, len(x))
        q = self.curr_q(q_scale)
        y = y.to(x.dtype) / q
        z = self.hyper_enc(y).to(x.dtype)
        coded = self.prior.estimate(y, z, self.bit_estimator_z, gaussian_likelihood, noisy=self.training)
        x_hat = self.synthesise(coded.y_hat * q).to(x.dtype)
        if not self.training:
            x_hat = x_hat.clamp(0, 1)
        return {"x_hat": x_hat, **rates_of(x, y=coded.bits_y, z=coded.bits_z), "latents": {"y": coded.latent}}

    @torch.no_grad()
    def compress(self, x: Tensor, q_scale: float) -> dict[str, Any]:
        """One picture to the family's payload.

        Args:
            x: ``[1, 3, H, W]`` float, in [0, 1]; H and W multiples of 64.
            q_scale: global step; rounded to 1/100 first, as a file stores it.

        Returns:
            ``bit_stream``: bytes; ``x_hat``: ``[1, 3, H, W]`` in [0, 1], as `decompress` will give it.
        """
        check_coded(x, STRIDE, self.enc)
        return self._compress(self.enc(x), q_scale)

    def _compress(self, y: Tensor, q_scale: float) -> dict[str, Any]:
        """`compress` from the transform latent `y` on, ``[1, C, H/16, W/16]``."""
        q = self.curr_q(self.round_q_scale(q_scale))
        y = y / q
        payload, y_hat = self.coder().encode(y, self.hyper_enc(y), q.flatten())
        return {"bit_stream": payload, "x_hat": self.synthesise(y_hat.contiguous()).clamp(0, 1)}

    def _decompress(self, bit_stream: bytes, height: int, width: int, q_scale: float) -> Tensor:
        """`decompress`, padded: ``[1, 3, H, W]`` in [0, 1]."""
        check_size(height, width)
        q = self.curr_q(self.round_q_scale(q_scale))
        z_shape = (1, self._hyper_channels, -(-height // STRIDE), -(-width // STRIDE))
        y_hat = self.coder().decode(bit_stream, z_shape, q.flatten())
        return self.synthesise(y_hat.contiguous()).clamp(0, 1)


def contiguous(module: nn.Module) -> Callable[..., Any]:
    """`module` on plain NCHW memory: which kernel a convolution gets depends on the layout, and with it the bits."""
    return lambda *inputs: module(*(value.contiguous() for value in inputs))
