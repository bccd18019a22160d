"""The kernel of `depth_conv_block`: four steps of a block on tiles, of which a launch has some."""

from __future__ import annotations

import triton
import triton.language as tl

from sparsecodec._triton._epilogue import activate
from sparsecodec._triton._tile import multiply, narrow

UNSPECIALISED = (
    "H", "W", "TILES_H", "TILES_W", "TILES", "C", "K1", "T", "C2", "COLUMNS2", "K3", "C4", "COLUMNS4",
    "PADS1", "PADS2", "PADS_H",
    "stride_xn", "stride_xh", "stride_xw",
    "stride_tn", "stride_th", "stride_tw",
    "stride_vn", "stride_vh", "stride_vw",
    "stride_sn", "stride_sh", "stride_sw",
    "stride_on", "stride_oh", "stride_ow",
)  # fmt: skip


@triton.jit
def _biases(bias_ptr, at, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr):
    """What sums start from, ``[BLOCK_P, BLOCK_N]``."""
    return tl.zeros((BLOCK_P, BLOCK_N), tl.float32) + tl.load(bias_ptr + at + tl.arange(0, BLOCK_N))[None, :]


@triton.jit
def _weights(weight_ptr, row, column, stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """``[ROWS, COLUMNS]`` of a packed matrix, which has them all."""
    rows = (row + tl.arange(0, ROWS)) * stride
    return tl.load(weight_ptr + (rows[:, None] + (column + tl.arange(0, COLUMNS))[None, :]))


@triton.jit
def _features(base_ptr, row, inside, start, CHANNELS, index_ptr, BLOCK_K: tl.constexpr):
    """``[BLOCK_P, BLOCK_K]``: channels `start` on, of CHANNELS, in the order of the index; zeros past the last."""
    k = start + tl.arange(0, BLOCK_K)
    known = k < CHANNELS
    source = k
    if index_ptr is not None:
        source = tl.load(index_ptr + k, mask=known, other=0)
    return tl.load(base_ptr + (row[:, None] + source[None, :]), mask=inside[:, None] & known[None, :], other=0.0)


@triton.jit
def _finish(
    acc, start, COLUMNS, column_ptr, residual_ptr, residual_row, shortcut_ptr, shortcut_row, scale_ptr,
    out_ptr, out_row, inside, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Residuals and steps of columns `start` on, of COLUMNS, and the store to the channels that `column_ptr` names."""
    j = start + tl.arange(0, BLOCK_N)
    known = j < COLUMNS
    channel = j
    if column_ptr is not None:
        channel = tl.load(column_ptr + j, mask=known, other=0)
    inside = inside[:, None] & known[None, :]
    if residual_ptr is not None:
        acc += tl.load(residual_ptr + (residual_row[:, None] + channel[None, :]), mask=inside, other=0.0).to(tl.float32)
    if shortcut_ptr is not None:
        acc += tl.load(shortcut_ptr + (shortcut_row[:, None] + channel[None, :]), mask=inside, other=0.0).to(tl.float32)
    if scale_ptr is not None:
        acc *= tl.load(scale_ptr + channel, mask=known, other=0.0)[None, :]
    tl.store(out_ptr + (out_row[:, None] + channel[None, :]), narrow(acc, out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=UNSPECIALISED)
def _depth_conv_block_fwd_kernel(
    x_ptr, t_ptr, v_ptr, skip_ptr, out_ptr,
    w1_ptr, b1_ptr, taps_ptr, w2_ptr, b2_ptr, adaptor_ptr, adaptor_bias_ptr, w3_ptr, b3_ptr, w4_ptr, b4_ptr,
    index1_ptr, column2_ptr, index3_ptr, column4_ptr, scale_ptr,
    H, W, TILES_H, TILES_W, TILES,
    C, K1, T, C2, COLUMNS2, K3, C4, COLUMNS4, PADS1, PADS2, PADS_H,
    slope1, slope_taps, slope2, slope3, slope4, slope_rest,
    stride_xn, stride_xh, stride_xw,
    stride_tn, stride_th, stride_tw,
    stride_vn, stride_vh, stride_vw,
    stride_sn, stride_sh, stride_sw,
    stride_on, stride_oh, stride_ow,
    FIRST: tl.constexpr, MIDDLE: tl.constexpr, LAST: tl.constexpr, CHUNKS: tl.constexpr, SHORTCUT: tl.constexpr,
    ACTIVATION1: tl.constexpr, ACTIVATION_TAPS: tl.constexpr, ACTIVATION2: tl.constexpr, ACTIVATION3: tl.constexpr,
    ACTIVATION4: tl.constexpr, VEC: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """One program: tiles of BLOCK_P / BLOCK_W x BLOCK_W pixels, one after the other.

    Four steps, of which a launch has some. They hand tiles on through memory that the program alone uses and that is
    small enough to stay in L2; a barrier of the program stands between the stores of a step and the loads of the next.

    FIRST: w1 on the tile and a ring of one pixel around it, into t, ``[programs, tile and ring, C1]``.
    always: the depthwise layer from t into v. Without FIRST, t is a map.
    MIDDLE: w2 and the skip (or the adaptor), from v, ``[programs, tile, .]``, into the result, as u. Without it v is a
    map, and a task is BLOCK_C channels of a tile.
    LAST: w3 and w4, BLOCK_H hidden channels at a time that never leave the registers. Sums of the BLOCK_N + BLOCK_M
    channels are held in two parts, since blocks are powers of two and widths are not.

    Packed matrices are ``[k, n]``, n contiguous: w1 ``[., C1]``, w2 and adaptor ``[., PADS2 * BLOCK_C]``, w3
    ``[., CHUNKS * HIDDEN]``, w4 ``[HIDDEN, .]``. C, COLUMNS2 and the strides of x, skip and out count in VEC, T and the
    strides of t and v in 8.
    """
    HALO_W: tl.constexpr = BLOCK_W + 2
    HALO: tl.constexpr = (BLOCK_P // BLOCK_W + 2) * HALO_W
    C1 = PADS1 * BLOCK_C
    HIDDEN = PADS_H * BLOCK_H
    blocks = PADS1
    if MIDDLE:
        blocks = 1
    for task in tl.range(tl.program_id(0), TILES * blocks, tl.num_programs(0), disable_licm=True):
        tile = task // blocks
        top = tile // TILES_W % TILES_H * (BLOCK_P // BLOCK_W)
        left = tile % TILES_W * BLOCK_W
        n = (tile // TILES_W // TILES_H).to(tl.int64)
        # [first, last): channels between w1 and w2
        first = task % blocks * BLOCK_C
        last = first + BLOCK_C
        if MIDDLE:
            last = C1
        # Computed anew for each task: kept from one to the next they would take registers that the sums need.
        program = task % tl.num_programs(0)
        p = tl.arange(0, BLOCK_P) + (program - tl.program_id(0))
        pid = program.to(tl.int64)
        tl.debug_barrier()  # what the task before wrote has been read

        if FIRST:
            first_ptr = x_ptr + VEC * (n * stride_xn + (top - 1).to(tl.int64) * stride_xh + (left - 1) * stride_xw)
            near_ptr = t_ptr + pid * stride_tn * 8 - first
            kept = K1 // VEC * VEC
            if index1_ptr is not None:
                kept = K1
            for start in tl.range(0, HALO, BLOCK_P, disable_licm=True):
                # [BLOCK_P]
                q = start + p
                y = q // HALO_W
                x = q % HALO_W
                inside = (y >= 1 - top) & (y <= H - top) & (x >= 1 - left) & (x <= W - left) & (q < HALO)
                row = (y * stride_xh + x * stride_xw) * VEC
                to = (y * stride_th + x * stride_tw) * 8
                for c in tl.range(first, last, BLOCK_C, disable_licm=True):
                    # [BLOCK_P, BLOCK_C]
                    acc = _biases(b1_ptr, c, BLOCK_P, BLOCK_C)
                    for k in tl.range(0, kept, BLOCK_K, disable_licm=True):
                        features = _features(first_ptr, row, inside, k, kept, index1_ptr, BLOCK_K)
                        acc = multiply(features, _weights(w1_ptr, k, c, C1, BLOCK_K, BLOCK_C), acc)
                    acc = narrow(activate(acc, slope1, ACTIVATION1), t_ptr.dtype.element_ty)
                    tl.store(near_ptr + (to[:, None] + (c + tl.arange(0, BLOCK_C))[None, :]), acc, mask=inside[:, None])
            near_ptr += (stride_th + stride_tw) * 8
            tl.debug_barrier()
        else:
            near_ptr = t_ptr + 8 * (n * stride_tn + top.to(tl.int64) * stride_th + left * stride_tw)

        # [BLOCK_P]
        y = p // BLOCK_W
        x = p % BLOCK_W
        inside = (y < H - top) & (x < W - left)
        near = (y * stride_th + x * stride_tw) * 8
        row_v = (y * stride_vh + x * stride_vw) * 8
        if MIDDLE:
            v_tile_ptr = v_ptr + pid * stride_vn * 8
        else:
            v_tile_ptr = v_ptr + 8 * (n * stride_vn + top.to(tl.int64) * stride_vh + left * stride_vw)
        for c in tl.range(first, last, BLOCK_D, disable_licm=True):
            # [BLOCK_P, BLOCK_D]
            t = _biases(taps_ptr, 9 * C1 + c, BLOCK_P, BLOCK_D)
            for tap in tl.static_range(9):
                dy = tap // 3 - 1
                dx = tap % 3 - 1
                there = inside & (y + dy >= -top) & (y + dy < H - top) & (x + dx >= -left) & (x + dx < W - left)
                near_tap_ptr = near_ptr + (dy * stride_th + dx * stride_tw) * 8
                value = _features(near_tap_ptr, near, there, c, T * 8, None, BLOCK_D).to(tl.float32)
                factor = tl.load(taps_ptr + tap * C1 + c + tl.arange(0, BLOCK_D))[None, :]
                t = tl.fma(value, tl.broadcast_to(factor, (BLOCK_P, BLOCK_D)), t)
            t = narrow(activate(t, slope_taps, ACTIVATION_TAPS), v_ptr.dtype.element_ty)
            tl.store(v_tile_ptr + (row_v[:, None] + (c + tl.arange(0, BLOCK_D))[None, :]), t, mask=inside[:, None])

        if MIDDLE:
            tl.debug_barrier()
            skip_tile_ptr = skip_ptr + VEC * (n * stride_sn + top.to(tl.int64) * stride_sh + left * stride_sw)
            out_tile_ptr = out_ptr + VEC * (n * stride_on + top.to(tl.int64) * stride_oh + left * stride_ow)
            row_s = (y * stride_sh + x * stride_sw) * VEC
            row_o = (y * stride_oh + x * stride_ow) * VEC
            for j in tl.range(0, COLUMNS2 * VEC, BLOCK_C, disable_licm=True):
                # [BLOCK_P, BLOCK_C]
                terms = C1
                if column2_ptr is not None:
                    terms = tl.where(j < C2, C1, 0)  # nothing to multiply where all columns are copies
                acc = _biases(b2_ptr, j, BLOCK_P, BLOCK_C)
                for k in tl.range(0, terms, BLOCK_K, disable_licm=True):
                    features = _features(v_tile_ptr, row_v, inside, k, C1, None, BLOCK_K)
                    acc = multiply(features, _weights(w2_ptr, k, j, PADS2 * BLOCK_C, BLOCK_K, BLOCK_C), acc)
                acc = activate(acc, slope2, ACTIVATION2)
                if column2_ptr is not None:
                    acc = tl.where((j + tl.arange(0, BLOCK_C) < C2)[None, :], acc, 0.0)  # 0 * inf is NaN
                residual_ptr = skip_tile_ptr
                if adaptor_ptr is not None:
                    residual_ptr = None
                    acc += tl.load(adaptor_bias_ptr + j + tl.arange(0, BLOCK_C))[None, :]
                    for k in tl.range(0, C * VEC, BLOCK_K, disable_licm=True):
                        features = _features(skip_tile_ptr, row_s, inside, k, C * VEC, None, BLOCK_K)
                        acc = multiply(features, _weights(adaptor_ptr, k, j, PADS2 * BLOCK_C, BLOCK_K, BLOCK_C), acc)
                _finish(
                    acc, j, COLUMNS2 * VEC, column2_ptr, residual_ptr, row_s, None, None, None, out_tile_ptr, row_o,
                    inside, BLOCK_C,
                )  # fmt: skip

        if LAST:
            tl.debug_barrier()
            DENSE: tl.constexpr = VEC == 8
            u_ptr = out_tile_ptr
            row_u = row_o
            if index3_ptr is not None or not DENSE:
                # One address for each element takes many registers: few channels at a time.
                for k in tl.range(0, BLOCK_N + BLOCK_M, BLOCK_D, disable_licm=True):
                    gathered = _features(out_tile_ptr, row_o, inside, k, K3, index3_ptr, BLOCK_D)
                    tl.store(v_tile_ptr + (row_v[:, None] + (k + tl.arange(0, BLOCK_D))[None, :]), gathered)
                u_ptr = v_tile_ptr
                row_u = row_v
                tl.debug_barrier()
                terms = BLOCK_N + BLOCK_M
            else:
                terms = K3 // VEC * VEC
            # [BLOCK_P, BLOCK_N], [BLOCK_P, BLOCK_M]
            u = _features(u_ptr, row_u, inside, 0, terms, None, BLOCK_N)
            if BLOCK_M:
                u_more = _features(u_ptr, row_u, inside, BLOCK_N, terms, None, BLOCK_M)
            acc = _biases(b4_ptr, 0, BLOCK_P, BLOCK_N)
            if BLOCK_M:
                more = _biases(b4_ptr, BLOCK_N, BLOCK_P, BLOCK_M)
            for start in tl.range(0, HIDDEN, BLOCK_H, disable_licm=True):
                # [BLOCK_P, BLOCK_H]
                hidden = tl.zeros((BLOCK_P, BLOCK_H), tl.float32)
                for chunk in tl.static_range(CHUNKS):
                    at = chunk * HIDDEN + start
                    part = _biases(b3_ptr, at, BLOCK_P, BLOCK_H)
                    part = multiply(u, _weights(w3_ptr, 0, at, CHUNKS * HIDDEN, BLOCK_N, BLOCK_H), part)
                    if BLOCK_M:
                        weights = _weights(w3_ptr, BLOCK_N, at, CHUNKS * HIDDEN, BLOCK_M, BLOCK_H)
                        part = multiply(u_more, weights, part)
                    slope = slope3
                    if slope_rest is not None:
                        if chunk:
                            slope = slope_rest
                    hidden += activate(part, slope, ACTIVATION3)
                hidden = narrow(hidden, out_ptr.dtype.element_ty)
                acc = multiply(hidden, _weights(w4_ptr, start, 0, BLOCK_N + BLOCK_M, BLOCK_H, BLOCK_N), acc)
                if BLOCK_M:
                    weights = _weights(w4_ptr, start, BLOCK_N, BLOCK_N + BLOCK_M, BLOCK_H, BLOCK_M)
                    more = multiply(hidden, weights, more)
            acc = activate(acc, slope4, ACTIVATION4)
            if BLOCK_M:
                more = activate(more, slope4, ACTIVATION4)
            tl.debug_barrier()  # u has been read
            if column4_ptr is None and DENSE and not SHORTCUT and scale_ptr is None:
                _finish(
                    acc, 0, COLUMNS4 // VEC * VEC, None, out_tile_ptr, row_o, None, None, None,
                    out_tile_ptr, row_o, inside, BLOCK_N,
                )  # fmt: skip
                if BLOCK_M:
                    _finish(
                        more, BLOCK_N, COLUMNS4 // VEC * VEC, None, out_tile_ptr, row_o, None, None, None,
                        out_tile_ptr, row_o, inside, BLOCK_M,
                    )  # fmt: skip
            else:
                # More addresses and factors than registers: few channels at a time, from v.
                shortcut_ptr = skip_tile_ptr if SHORTCUT else None
                to = row_v[:, None] + tl.arange(0, BLOCK_N)[None, :]
                tl.store(v_tile_ptr + to, narrow(acc, v_ptr.dtype.element_ty))
                if BLOCK_M:
                    to = row_v[:, None] + (BLOCK_N + tl.arange(0, BLOCK_M))[None, :]
                    tl.store(v_tile_ptr + to, narrow(more, v_ptr.dtype.element_ty))
                tl.debug_barrier()
                for j in tl.range(0, COLUMNS4, BLOCK_D, disable_licm=True):
                    rest = _features(v_tile_ptr, row_v, inside, j, C4, None, BLOCK_D).to(tl.float32)
                    _finish(
                        rest, j, COLUMNS4, column4_ptr, out_tile_ptr, row_o, shortcut_ptr, row_s, scale_ptr,
                        out_tile_ptr, row_o, inside, BLOCK_D,
                    )  # fmt: skip
