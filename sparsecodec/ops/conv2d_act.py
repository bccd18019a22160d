"""k x k convolution with bias, activation and the epilogue of `pointwise`."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from sparsecodec.ops._epilogue import cpu_rejects, finish, select_channels
from sparsecodec.ops._registry import Impl, OpSpec, call, register
from sparsecodec.ops._triton_rules import triton_rejects_dense


def conv2d_act_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: int = 0,
    in_index: Tensor | None = None,
    out_index: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    slope: float = 0.01,
    shuffle: int = 1,
    pinned: bool = True,
) -> Tensor:
    """`conv2d_act` in plain torch."""
    x = select_channels(x, in_index)
    y = F.conv2d(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype), stride, padding)
    return finish(y, out_index, residual, activation, slope, shuffle)


def _cpu_rejects(x: Tensor, residual: Tensor | None, **_: Any) -> list[str]:
    return cpu_rejects(x=x, residual=residual)


def _triton_rejects(x: Tensor, out_index: Tensor | None, residual: Tensor | None, shuffle: int, **_: Any) -> list[str]:
    return triton_rejects_dense(out_index, shuffle, x=x, residual=residual)


CONV2D_ACT = register(
    OpSpec(
        name="conv2d_act",
        schema=(
            "(Tensor x, Tensor weight, Tensor? bias=None, int stride=1, int padding=0, Tensor? in_index=None, "
            'Tensor? out_index=None, Tensor? residual=None, str activation="none", float slope=0.01, int shuffle=1, '
            "bool pinned=True) -> Tensor"
        ),
        reference=conv2d_act_reference,
        impls=(
            Impl("cpu", "sparsecodec._C:conv2d_act", rejects=_cpu_rejects, plan="sparsecodec._C:conv2d_act_plan"),
            Impl(
                "triton",
                "sparsecodec._triton.conv2d_act:conv2d_act",
                rejects=_triton_rejects,
                plan="sparsecodec._triton.conv2d_act:conv2d_act_plan",
            ),
        ),
        constants=(
            "weight", "bias", "stride", "padding", "in_index", "out_index", "activation", "slope", "shuffle",
            "pinned",
        ),
    )
)  # fmt: skip


def conv2d_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: int = 0,
    in_index: Tensor | None = None,
    out_index: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    slope: float = 0.01,
    shuffle: int = 1,
    pinned: bool = True,
) -> Tensor:
    """`torch.nn.functional.conv2d` of some channels, activation, pixel shuffle, added to some channels.

    Args:
        x: ``[N, C_in_full, H, W]`` bfloat16|float32, float16 on GPU; channels_last for the kernels. Features.
        weight: ``[C_out, C_in, Kh, Kw]``, any float dtype.
        bias: ``[C_out]`` or None.
        stride: of both axes.
        padding: zeros on all four sides.
        in_index: ``[C_in]`` int or None. Channels of `x`; None = x has exactly C_in channels.
        out_index: ``[C_out]`` int or None. Distinct channels of `residual`; needs shuffle=1.
        residual: ``[N, C_full, H', W']`` if `out_index` is given, else the shape of the result, or None. Added last.
        activation: none | relu | leaky_relu | sigmoid_gate (y * sigmoid(4 y)).
        slope: of leaky_relu.
        shuffle: r of `torch.nn.PixelShuffle`, applied after the activation; C_out is a multiple of r^2.
        pinned: for float32 on a CPU: the order of products below. Without it a 3x3 kernel of stride 1 may take fewer of
            them (minimal filtering, arXiv 1509.09308). Has no effect elsewhere.

    Returns:
        ``[N, C_full or C_out / r^2, H'*r, W'*r]``, dtype of `x`.

    Raises:
        NoBackendError: a backend is forced and refuses these inputs.
        UsageError: an unknown activation, or `out_index` without `residual` or with a shuffle.

    Exactness: tolerance. The float32 kernels are pinned: acc = bias, then acc = fma(x, w, acc) over kernel row, kernel
        column, input channel; their bits do not depend on instruction set, threads, tile, batch or image size. Those
        of fewer products, on a CPU, do not either, but on where in the picture a pixel lies (even or odd).
    Gradients: reference only.
    """
    return call(
        CONV2D_ACT, x, weight, bias, stride, padding, in_index, out_index, residual, activation, slope, shuffle, pinned
    )
