"""Generalised divisive normalisation, forward and inverse."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from sparsecodec.ops._epilogue import cpu_rejects
from sparsecodec.ops._registry import Impl, OpSpec, call, register
from sparsecodec.ops._triton_rules import triton_rejects_dense


def gdn_reference(x: Tensor, beta: Tensor, gamma: Tensor, inverse: bool = False) -> Tensor:
    """`gdn` in plain torch."""
    norm = F.conv2d(x * x, gamma[:, :, None, None].to(x.dtype), beta.to(x.dtype)).sqrt()
    return x * norm if inverse else x / norm


def _cpu_rejects(x: Tensor, **_: Any) -> list[str]:
    return cpu_rejects(x=x)


def _triton_rejects(x: Tensor, **_: Any) -> list[str]:
    return triton_rejects_dense(x=x)


GDN = register(
    OpSpec(
        name="gdn",
        schema="(Tensor x, Tensor beta, Tensor gamma, bool inverse=False) -> Tensor",
        reference=gdn_reference,
        impls=(
            Impl("cpu", "sparsecodec._C:gdn", rejects=_cpu_rejects, plan="sparsecodec._C:gdn_plan"),
            Impl(
                "triton",
                "sparsecodec._triton.gdn:gdn",
                rejects=_triton_rejects,
                plan="sparsecodec._triton.gdn:gdn_plan",
            ),
        ),
        constants=("beta", "gamma", "inverse"),
    )
)


def gdn(x: Tensor, beta: Tensor, gamma: Tensor, inverse: bool = False) -> Tensor:
    """Divides each channel by the norm of all channels (Balle et al., arXiv 1511.06281); `inverse` multiplies.

    y[n,c,h,w] = x[n,c,h,w] / sqrt(beta[c] + sum_k gamma[c,k] * x[n,k,h,w]^2)

    Args:
        x: ``[N, C, H, W]`` bfloat16|float32, float16 on GPU; channels_last for the kernels. Features.
        beta: ``[C]``, positive, any float dtype. The reparametrised value, as the norm uses it.
        gamma: ``[C, C]``, not negative. Row c weighs the squares for channel c.
        inverse: multiply instead of dividing (IGDN).

    Returns:
        ``[N, C, H, W]``, dtype of `x`.
    """
    return call(GDN, x, beta, gamma, inverse)
