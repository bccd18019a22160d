"""1x1 convolution with channel gather on the way in and scatter-add or pixel shuffle on the way out."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from sparsecodec.errors import UsageError
from sparsecodec.ops._epilogue import activate, add_chunks, cpu_rejects, finish, scale_channels, select_channels
from sparsecodec.ops._registry import Impl, OpSpec, call, register
from sparsecodec.ops._triton_rules import triton_rejects_dense


def pointwise_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    in_index: Tensor | None = None,
    out_index: Tensor | None = None,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
    activation: str = "none",
    slope: float = 0.01,
    shuffle: int = 1,
    chunks: int = 1,
    interleaved: bool = False,
) -> Tensor:
    """`pointwise` in plain torch."""
    x = select_channels(x, in_index)
    kernel = weight[:, :, None, None] if weight.dim() == 2 else weight
    y = F.conv2d(x, kernel.to(x.dtype), None if bias is None else bias.to(x.dtype))
    if chunks != 1:
        if shuffle != 1 or out_index is not None:
            raise UsageError(f"chunks={chunks} with shuffle={shuffle} or out_index (needs neither)")
        y, activation = add_chunks(activate(y, activation, slope), chunks, interleaved), "none"
    return scale_channels(finish(y, out_index, residual, activation, slope, shuffle), scale)


def _cpu_rejects(x: Tensor, residual: Tensor | None, **_: Any) -> list[str]:
    return cpu_rejects(x=x, residual=residual)


def _triton_rejects(
    x: Tensor,
    out_index: Tensor | None,
    residual: Tensor | None,
    scale: Tensor | None,
    shuffle: int,
    chunks: int,
    **_: Any,
) -> list[str]:
    return triton_rejects_dense(out_index, shuffle, chunks, scale, x=x, residual=residual)


POINTWISE = register(
    OpSpec(
        name="pointwise",
        schema=(
            "(Tensor x, Tensor weight, Tensor? bias=None, Tensor? in_index=None, Tensor? out_index=None, "
            'Tensor? residual=None, Tensor? scale=None, str activation="none", float slope=0.01, int shuffle=1, '
            "int chunks=1, bool interleaved=False) -> Tensor"
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
        constants=(
            "weight", "bias", "in_index", "out_index", "activation", "slope", "shuffle", "chunks", "interleaved",
        ),
    )
)  # fmt: skip


def pointwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    in_index: Tensor | None = None,
    out_index: Tensor | None = None,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
    activation: str = "none",
    slope: float = 0.01,
    shuffle: int = 1,
    chunks: int = 1,
    interleaved: bool = False,
) -> Tensor:
    """1x1 convolution of some channels, added to some channels.

    y[n,o,h,w] = act(bias[o] + sum_k weight[o,k] * x[n, in_index[k], h, w]), chunks added, shuffled; then
    out = residual, with y[:, o] added to channel out_index[o]; then out[:, c] *= scale[c].

    Args:
        x: ``[N, C_in_full, H, W]`` bfloat16|float32, float16 on GPU; channels_last for the kernels. Features.
        weight: ``[C_out, C_in]`` or ``[C_out, C_in, 1, 1]``, any float dtype.
        bias: ``[C_out]`` or None.
        in_index: ``[C_in]`` int or None. Channels of `x`; None = x has exactly C_in channels.
        out_index: ``[C_out]`` int or None. Distinct channels of `residual`; needs shuffle=1.
        residual: ``[N, C_full, H, W]`` if `out_index` is given, else the shape of the result, or None. Added last.
        scale: ``[C]`` float32 for the C channels of the result, or None. Quantisation step; changes between calls.
        activation: none | relu | leaky_relu | sigmoid_gate (y * sigmoid(4 y), DCVC's WSiLU).
        slope: of leaky_relu.
        shuffle: r of `torch.nn.PixelShuffle`, applied after the activation; C_out is a multiple of r^2.
        chunks: so many activated channels are added to one; divides C_out; needs shuffle=1 and no `out_index`.
        interleaved: add `chunks` neighbours (DCVC-UF) instead of runs of C_out / chunks channels (DCVC-RT).

    Returns:
        ``[N, C_full or C_out / (r^2 * chunks), H*r, W*r]``, dtype of `x`.

    Raises:
        NoBackendError: a backend is forced and refuses these inputs.
        UsageError: an unknown activation, `out_index` without `residual` or with a shuffle, or chunks that do not fit.

    Exactness: tolerance. The float32 kernels are pinned: acc = bias, then acc = fma(x, w, acc) over k ascending; their
        bits do not depend on instruction set, threads, tile, batch or image size.
    Gradients: reference only.
    """
    options = (scale, activation, slope, shuffle, chunks, interleaved)
    return call(POINTWISE, x, weight, bias, in_index, out_index, residual, *options)
