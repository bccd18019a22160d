"""Transposed convolution with bias and activation."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from sparsecodec.ops._epilogue import activate, cpu_rejects
from sparsecodec.ops._registry import Impl, OpSpec, call, register
from sparsecodec.ops._triton_rules import triton_rejects_dense


def conv_transpose2d_act_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: int = 0,
    output_padding: int = 0,
    activation: str = "none",
    slope: float = 0.01,
    pinned: bool = True,
) -> Tensor:
    """`conv_transpose2d_act` in plain torch."""
    cast = None if bias is None else bias.to(x.dtype)
    y = F.conv_transpose2d(x, weight.to(x.dtype), cast, stride, padding, output_padding)
    return activate(y, activation, slope)


def _cpu_rejects(x: Tensor, **_: Any) -> list[str]:
    return cpu_rejects(x=x)


def _triton_rejects(x: Tensor, **_: Any) -> list[str]:
    return triton_rejects_dense(x=x)


CONV_TRANSPOSE2D_ACT = register(
    OpSpec(
        name="conv_transpose2d_act",
        schema=(
            "(Tensor x, Tensor weight, Tensor? bias=None, int stride=1, int padding=0, int output_padding=0, "
            'str activation="none", float slope=0.01, bool pinned=True) -> Tensor'
        ),
        reference=conv_transpose2d_act_reference,
        impls=(
            Impl(
                "cpu",
                "sparsecodec._C:conv_transpose2d_act",
                rejects=_cpu_rejects,
                plan="sparsecodec._C:conv_transpose2d_act_plan",
            ),
            Impl(
                "triton",
                "sparsecodec._triton.conv_transpose2d_act:conv_transpose2d_act",
                rejects=_triton_rejects,
                plan="sparsecodec._triton.conv_transpose2d_act:conv_transpose2d_act_plan",
            ),
        ),
        constants=("weight", "bias", "stride", "padding", "output_padding", "activation", "slope", "pinned"),
    )
)


def conv_transpose2d_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: int = 0,
    output_padding: int = 0,
    activation: str = "none",
    slope: float = 0.01,
    pinned: bool = True,
) -> Tensor:
    """`torch.nn.functional.conv_transpose2d` and an activation.

    Args:
        x: ``[N, C_in, H, W]`` bfloat16|float32, float16 on GPU; channels_last for the kernels. Features.
        weight: ``[C_in, C_out, Kh, Kw]``, any float dtype.
        bias: ``[C_out]`` or None.
        stride: of both axes.
        padding: as torch: taken off all four sides.
        output_padding: as torch: rows and columns added at the end; smaller than `stride`.
        activation: none | relu | leaky_relu | sigmoid_gate (y * sigmoid(4 y)).
        slope: of leaky_relu.
        pinned: as for `conv2d_act`, of a 5x5 kernel with stride 2 and padding 2.

    Returns:
        ``[N, C_out, H', W']`` with H' = (H - 1) * stride - 2 * padding + Kh + output_padding, dtype of `x`.

    Raises:
        NoBackendError: a backend is forced and refuses these inputs.
        UsageError: an unknown activation.

    Exactness: tolerance. The float32 kernels are pinned: acc = bias, then acc = fma(x, w, acc) over the kernel rows
        and columns that reach an output pixel, ascending, then input channels.
    Gradients: reference only.
    """
    return call(CONV_TRANSPOSE2D_ACT, x, weight, bias, stride, padding, output_padding, activation, slope, pinned)
