"""1x1 convolution with channel gather on the way in and scatter-add or pixel shuffle on the way out."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from sparsecodec.ops._epilogue import cpu_rejects, finish, select_channels
from sparsecodec.ops._registry import Impl, OpSpec, call, register
from sparsecodec.ops._triton_rules import triton_rejects_dense


def pointwise_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    in_index: Tensor | None = None,
    out_index: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    slope: float = 0.01,
    shuffle: int = 1,
) -> Tensor:
    """`pointwise` in plain torch."""
    x = select_channels(x, in_index)
    kernel = weight[:, :, None, None] if weight.dim() == 2 else weight
    y = F.conv2d(x, kernel.to(x.dtype), None if bias is None else bias.to(x.dtype))
    return finish(y, out_index, residual, activation, slope, shuffle)


def _cpu_rejects(x: Tensor, residual: Tensor | None, **_: Any) -> list[str]:
    return cpu_rejects(x=x, residual=residual)


def _triton_rejects(x: Tensor, out_index: Tensor | None, residual: Tensor | None, shuffle: int, **_: Any) -> list[str]:
    return triton_rejects_dense(out_index, shuffle, x=x, residual=residual)


POINTWISE = register(
    OpSpec(
        name="pointwise",
        schema=(
            "(Tensor x, Tensor weight, Tensor? bias=None, Tensor? in_index=None, Tensor? out_index=None, "
            'Tensor? residual=None, str activation="none", float slope=0.01, int shuffle=1) -> Tensor'
        ),
        reference=pointwise_reference,
        impls=(
            Impl("cpu", "sparsecodec._C:pointwise", rejects=_cpu_rejects, plan="sparsecodec._C:pointwise_plan"),
            Impl(
                "triton",  # after cpu, which takes no CUDA tensor: the interpreter never replaces the native kernel
                "sparsecodec._triton.pointwise:pointwise",
                rejects=_triton_rejects,
                plan="sparsecodec._triton.pointwise:pointwise_plan",
            ),
        ),
        constants=("weight", "bias", "in_index", "out_index", "activation", "slope", "shuffle"),
    )
)


def pointwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    in_index: Tensor | None = None,
    out_index: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    slope: float = 0.01,
    shuffle: int = 1,
) -> Tensor:
    """1x1 convolution of some channels, added to some channels.

    y[n,o,h,w] = act(bias[o] + sum_k weight[o,k] * x[n, in_index[k], h, w]), shuffled; then out = residual, with y[:, o]
    added to channel out_index[o].

    Args:
        x: ``[N, C_in_full, H, W]`` bfloat16|float32, channels_last for the CPU kernel. Features.
        weight: ``[C_out, C_in]`` or ``[C_out, C_in, 1, 1]``, any float dtype.
        bias: ``[C_out]`` or None.
        in_index: ``[C_in]`` int or None. Channels of `x`; None = x has exactly C_in channels.
        out_index: ``[C_out]`` int or None. Distinct channels of `residual`; needs shuffle=1.
        residual: ``[N, C_full, H, W]`` if `out_index` is given, else the shape of the result, or None. Added last.
        activation: none | relu | leaky_relu | sigmoid_gate (y * sigmoid(4 y)).
        slope: of leaky_relu.
        shuffle: r of `torch.nn.PixelShuffle`, applied after the activation; C_out is a multiple of r^2.

    Returns:
        ``[N, C_full or C_out / r^2, H*r, W*r]``, dtype of `x`.

    Raises:
        NoBackendError: a backend is forced and refuses these inputs.
        UsageError: an unknown activation, or `out_index` without `residual` or with a shuffle.

    Exactness: tolerance. The float32 CPU kernel is pinned: acc = bias, then acc = fma(x, w, acc) over k ascending; its
        bits do not depend on instruction set, threads, batch or image size.
    Gradients: reference only.
    """
    return call(POINTWISE, x, weight, bias, in_index, out_index, residual, activation, slope, shuffle)
