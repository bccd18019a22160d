"""A depthwise block and the feed-forward block behind it, whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsecodec.errors import UsageError
from sparsecodec.ops._epilogue import activate, add_chunks, cpu_rejects, finish, scale_channels, select_channels
from sparsecodec.ops._registry import Impl, OpSpec, call, register
from sparsecodec.ops._triton_rules import triton_rejects_dense


def _pointwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    slope: float = 1.0,
    gate: str | None = None,
    out_index: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """1x1 and its activation: `gate` if given, else `slope`; then into the channels `out_index` of `residual`."""
    if residual is not None and weight.shape[0] == 0:
        return residual
    kernel = weight[:, :, None, None] if weight.dim() == 2 else weight
    y = F.conv2d(x, kernel.to(x.dtype), None if bias is None else bias.to(x.dtype))
    y = _activate(y, slope) if gate is None else activate(y, gate, 1.0)
    return finish(y, out_index, residual, "none", 1.0, 1)


def _activate(y: Tensor, slope: float) -> Tensor:
    """Slope 1 is the identity, 0 a ReLU."""
    if slope == 1.0:
        return y
    return F.relu(y) if slope == 0.0 else F.leaky_relu(y, slope)


def _activate_chunks(y: Tensor, slopes: Sequence[float], chunks: int, interleaved: bool) -> Tensor:
    """The activation after w3, which may be another one for the chunks behind the first."""
    if len(slopes) == 5:
        return _activate(y, slopes[3])
    place = torch.arange(y.shape[1], device=y.device)
    first = place % chunks == 0 if interleaved else place < y.shape[1] // chunks
    return torch.where(first[:, None, None], _activate(y, slopes[3]), _activate(y, slopes[5]))


def depth_conv_block_reference(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    dw: Tensor,
    db: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    w3: Tensor,
    b3: Tensor | None,
    w4: Tensor,
    b4: Tensor | None,
    slopes: Sequence[float],
    adaptor: Tensor | None = None,
    adaptor_bias: Tensor | None = None,
    out2_index: Tensor | None = None,
    out4_index: Tensor | None = None,
    in1_index: Tensor | None = None,
    in3_index: Tensor | None = None,
    scale: Tensor | None = None,
    gated: bool = False,
    chunks: int = 1,
    interleaved: bool = False,
    shortcut: bool = False,
) -> Tensor:
    """`depth_conv_block` in plain torch."""
    if len(slopes) not in (5, 6):
        raise UsageError(f"slopes: {len(slopes)} values (needs 5 or 6)")
    gate = "sigmoid_gate" if gated else None
    t = _pointwise(select_channels(x, in1_index), w1, b1, slopes[0], gate)
    t = F.conv2d(t, dw.to(x.dtype), None if db is None else db.to(x.dtype), padding=1, groups=dw.shape[0])
    t = _activate(t, slopes[1])
    skip = x if adaptor is None else _pointwise(x, adaptor, adaptor_bias)
    u = _pointwise(t, w2, b2, slopes[2], out_index=out2_index, residual=skip)
    t = _pointwise(select_channels(u, in3_index), w3, b3)
    t = _activate_chunks(t, slopes, chunks, interleaved) if gate is None else activate(t, gate, 1.0)
    t = add_chunks(t, chunks, interleaved)
    out = _pointwise(t, w4, b4, slopes[4], out_index=out4_index, residual=u)
    return scale_channels(out + skip if shortcut else out, scale)


def _cpu_rejects(x: Tensor, **_: Any) -> list[str]:
    return cpu_rejects(x=x)


def _triton_rejects(x: Tensor, scale: Tensor | None, **_: Any) -> list[str]:
    return triton_rejects_dense(scale=scale, x=x)


def _scratch(x: Tensor, w1: Tensor, w4: Tensor, adaptor: Tensor | None = None, **_: Any) -> int:
    """Maps of four launches, which have most: behind the depthwise layer, behind w2, of the adaptor, hidden.

    Ways that keep these in tiles have less, but for maps of few pixels, whose tiles have rings.
    """
    n, channels, height, width = x.shape
    between = -(-w1.shape[0] // 64) * 64  # in blocks of channels
    maps = [between, channels, 0] if adaptor is None else [between, adaptor.shape[0], adaptor.shape[0]]
    return n * height * width * x.element_size() * sum([*maps, w4.shape[1]])


DEPTH_CONV_BLOCK = register(
    OpSpec(
        name="depth_conv_block",
        schema=(
            "(Tensor x, Tensor w1, Tensor? b1, Tensor dw, Tensor? db, Tensor w2, Tensor? b2, Tensor w3, Tensor? b3, "
            "Tensor w4, Tensor? b4, float[] slopes, Tensor? adaptor=None, Tensor? adaptor_bias=None, "
            "Tensor? out2_index=None, Tensor? out4_index=None, Tensor? in1_index=None, "
            "Tensor? in3_index=None, Tensor? scale=None, bool gated=False, int chunks=1, bool interleaved=False, "
            "bool shortcut=False) -> Tensor"
        ),
        reference=depth_conv_block_reference,
        impls=(
            Impl(
                "cpu",
                "sparsecodec._C:depth_conv_block",
                rejects=_cpu_rejects,
                plan="sparsecodec._C:depth_conv_block_plan",
            ),
            Impl(
                "triton",
                "sparsecodec._triton.depth_conv_block:depth_conv_block",
                rejects=_triton_rejects,
                plan="sparsecodec._triton.depth_conv_block:depth_conv_block_plan",
            ),
        ),
        constants=(
            *("w1", "b1", "dw", "db", "w2", "b2", "w3", "b3", "w4", "b4", "slopes"),
            *("adaptor", "adaptor_bias", "out2_index", "out4_index", "in1_index", "in3_index"),
            *("gated", "chunks", "interleaved", "shortcut"),
        ),
        scratch=_scratch,
    )
)


def depth_conv_block(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    dw: Tensor,
    db: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    w3: Tensor,
    b3: Tensor | None,
    w4: Tensor,
    b4: Tensor | None,
    slopes: Sequence[float],
    adaptor: Tensor | None = None,
    adaptor_bias: Tensor | None = None,
    out2_index: Tensor | None = None,
    out4_index: Tensor | None = None,
    in1_index: Tensor | None = None,
    in3_index: Tensor | None = None,
    scale: Tensor | None = None,
    gated: bool = False,
    chunks: int = 1,
    interleaved: bool = False,
    shortcut: bool = False,
) -> Tensor:
    """1x1, depthwise 3x3, 1x1 beside a skip, then two 1x1 beside a skip.

    t = act1(w1 x[in1] + b1); t = act2(dw t + db), zeros around t; u = skip, with act3(w2 t + b2) added to its channels
    out2; out = u, with act5(w4 sum(act4(w3 u[in3] + b3)) + b4) added to its channels out4. skip = x or adaptor x; sum
    adds chunks of channels. With `shortcut` out += skip; with `scale` out[:, c] *= scale[c].

    Args:
        x: ``[N, C, H, W]`` bfloat16|float32, channels_last for the CPU kernel. Features.
        w1: ``[C1, C]``, or ``[C1, K1]`` with `in1_index`. All matrices may also be ``[., ., 1, 1]``; any float dtype.
        b1: ``[C1]`` or None. All biases may be None.
        dw: ``[C1, 1, 3, 3]``. Depthwise taps.
        db: ``[C1]`` or None.
        w2: ``[Co, C1]``, or ``[C2, C1]`` with `out2_index`.
        b2: as rows of `w2`, or None.
        w3: ``[H * chunks, Co]``, or ``[H * chunks, K3]`` with `in3_index`.
        b3: ``[H * chunks]`` or None.
        w4: ``[Co, H]``, or ``[C4, H]`` with `out4_index`.
        b4: as rows of `w4`, or None.
        slopes: factor of negative values after w1, dw, w2, w3 and w4: 1 = no activation, 0 = ReLU, else LeakyReLU. A
            sixth is that of the chunks of w3 behind the first one (DCVC-FM).
        adaptor: ``[Co, C]`` or None, then Co = C.
        adaptor_bias: ``[Co]`` or None.
        out2_index: ``[C2]`` int or None. Distinct channels of u.
        out4_index: ``[C4]`` int or None. Distinct channels of the result.
        in1_index: ``[K1]`` int or None. Channels of `x` that w1 reads.
        in3_index: ``[K3]`` int or None. Channels of u that w3 reads.
        scale: ``[Co]`` float32 or None. Quantisation step; changes between calls.
        gated: y * sigmoid(4 y) after w1 and w3 instead of their slopes (DCVC's WSiLU).
        chunks: so many activated channels of the hidden layer are added to one.
        interleaved: add `chunks` neighbours (DCVC-UF) instead of runs of H channels (DCVC-RT).
        shortcut: add the skip a second time, to the result.

    Returns:
        ``[N, Co, H, W]``, dtype of `x`.
    """
    return call(
        DEPTH_CONV_BLOCK, x, w1, b1, dw, db, w2, b2, w3, b3, w4, b4, slopes, adaptor, adaptor_bias, out2_index,
        out4_index, in1_index, in3_index, scale, gated, chunks, interleaved, shortcut,
    )  # fmt: skip
