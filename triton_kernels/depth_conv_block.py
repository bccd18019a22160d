"""`depth_conv_block`: one kernel for one, two or more launches of a block."""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from sparsecodec._triton import _depth_conv_cost as cost
from sparsecodec._triton._autotune import choose
from sparsecodec._triton._epilogue import activate
from sparsecodec._triton._tile import INTERPRETED, multiply, narrow, padded, vector
from sparsecodec._triton.pointwise import pointwise_plan

UNSPECIALISED = (
    "H", "W", "TILES_H", "TILES_W", "TILES", "C", "K1", "T", "C2", "COLUMNS2", "K3", "C4", "COLUMNS4",
    "PADS1", "PADS2", "PADS_H",
    "stride_xn", "stride_xh", "stride_xw",
    "stride_tn", "stride_th", "stride_tw",
    "stride_vn", "stride_vh", "stride_vw",
    "stride_sn", "stride_sh", "stride_sw",
    "stride_on", "stride_oh", "stride_ow",
)  # fmt: skip
NOT_ALWAYS = ("adaptor_ptr", "adaptor_bias_ptr", "w3_ptr", "b3_ptr", "w4_ptr", "b4_ptr")


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
    slope1, slope_taps, slope2, slope3, slope4,
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
                    hidden += activate(part, slope3, ACTIVATION3)
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


def _activation(slope: float, gated: bool = False) -> str:
    if gated:
        return "sigmoid_gate"
    return {1.0: "none", 0.0: "relu"}.get(slope, "leaky_relu")


def _packed(weight, bias, dtype, rows, columns, least=1):
    """``[k, n]`` and ``[n]`` of a matrix ``[n, k]`` and its bias, padded: k to multiples of `rows`, n to multiples of
    `columns`, `least` at the least."""
    n = max(weight.shape[0], least)
    whole, start = weight.new_zeros(n, weight.shape[1]), weight.new_zeros(n)
    whole[: weight.shape[0]] = weight
    if bias is not None:
        start[: bias.shape[0]] = bias
    return padded(whole.t(), dtype, rows, columns), padded(start, torch.float32, columns)


def _packed_chunks(weight, bias, dtype, rows, chunks, interleaved, block):
    """w3 ``[k, chunks * hidden]``, one chunk after the other, `hidden` padded to multiples of `block`; and its bias."""
    order = torch.arange(weight.shape[0], device=weight.device)
    order = order.view(-1, chunks).t() if interleaved else order.view(chunks, -1)
    bias = weight.new_zeros(weight.shape[0]) if bias is None else bias
    weight = padded(weight[order], dtype, block, rows)
    return weight.permute(2, 0, 1).flatten(1).contiguous(), padded(bias[order], torch.float32, block).flatten()


@functools.cache
def _gpu(device):
    """What `device` can do, and the shared memory of a program there."""
    if device.type != "cuda":
        return cost.Gpu(), 227 * 1024
    found = torch.cuda.get_device_properties(device)
    gpu = cost.Gpu() if found.major >= 9 else cost.A100
    return gpu.like(10 * found.major + found.minor, found.multi_processor_count), found.shared_memory_per_block_optin


def _vector(*maps):
    """As `_tile.vector`, of channels, strides and where the maps begin."""
    sizes = [size for t in maps for size in (t.shape[1], t.stride(0), t.stride(2), t.stride(3))]
    return vector(*sizes) if all(t.data_ptr() % 16 == 0 for t in maps) else 1


class DepthConvBlockPlan:
    """The op with its constants packed: a callable ``(x, scale=None, out=None)``.

    How many launches a call takes depends on the size of `x`; what is packed for one way is packed when that way is
    first taken.

    Attributes:
        launches: of the last call; before the first, of one with 240 x 135 pixels.
        note: why these, in words.
    """

    def __init__(
        self, w1, b1, dw, db, w2, b2, w3, b3, w4, b4, slopes, adaptor, adaptor_bias, out2_index, out4_index,
        in1_index, in3_index, gated, chunks, interleaved, shortcut, dtype, kind=None,
    ):  # fmt: skip
        """kind: as `_depth_conv_cost.Launches.kind`, whatever that way costs."""
        given = {
            "w1": w1, "w2": w2, "w3": w3, "w4": w4, "dw": dw, "adaptor": adaptor,
            "b1": b1, "b2": b2, "b3": b3, "b4": b4, "db": db, "adaptor_bias": adaptor_bias,
        }  # fmt: skip
        # Copies: they are packed later, and what happens to the originals meanwhile is not this plan's affair.
        copies = {name: None if t is None else t.detach().to(torch.float32, copy=True) for name, t in given.items()}
        self._weights = {name: t if t is None or t.dim() == 1 else t.flatten(1) for name, t in copies.items()}
        indices = {"in1": in1_index, "out2": out2_index, "in3": in3_index, "out4": out4_index}
        self._indices = {name: None if t is None else t.to(torch.int32, copy=True) for name, t in indices.items()}
        self._slopes = [float(slope) for slope in slopes]
        gates = (gated, False, False, gated, False)
        self._activations = [_activation(slope, gate) for slope, gate in zip(self._slopes, gates, strict=True)]
        self._chunks, self._interleaved, self._shortcut = chunks, interleaved, shortcut
        # A float32 sum has one order, in which the adaptor's result is one number.
        self._adaptor_apart = adaptor is not None and (shortcut or dtype == torch.float32)
        self._dtype, self._kind = dtype, kind
        self._ways, self._built = {}, {}
        kind, tiles = self._way((1, w1.shape[1], 135, 240), w1.device, w2.shape[0] % 8 == 0 or out2_index is not None)
        self._pack(tiles[0], kind)
        for name in self._layers(kind):
            self._layer(name)

    def __call__(self, x, scale=None, out=None):
        n, c, height, width = x.shape
        if out is None:
            shape = (n, self._widths(c)["co"], height, width)
            out = torch.empty(shape, dtype=self._dtype, device=x.device, memory_format=torch.channels_last)
        elif out.data_ptr() == x.data_ptr() and x.numel():
            raise ValueError("out: is x, whose pixels are read after their neighbours are written")
        if out.numel() == 0:
            return out
        kind, tiles = self._way(x.shape, x.device, _vector(x, out) > 1)
        layers = self._layers(kind)
        skip = self._layer("adaptor")(x) if "adaptor" in layers else x
        first = self._layer("w1")(x) if "w1" in layers else None

        def launch(tile, out=out):
            return self._launch(kind, x, first, skip, scale, out, tile)

        def trial():
            scratch = torch.empty_like(out)
            return lambda tile: launch(tile, scratch)

        indexed = tuple(index is None for index in self._indices.values())
        sizes = (*self._widths(c).values(), (n * height * width).bit_length())
        key = (str(self._dtype), kind, *sizes, *indexed, scale is None)
        v = launch(choose("depth_conv_block", key, tiles, x.device, trial))
        if kind in ("three", "four"):
            self._feed_forward(v if kind == "four" else None, skip, scale, out)
        return out

    def _widths(self, c):
        """The sizes that decide, by their names in `_depth_conv_cost.Widths`."""
        w = self._weights
        return {
            "c": c, "co": c if w["adaptor"] is None else w["adaptor"].shape[0],
            "k1": w["w1"].shape[1], "c1": w["w1"].shape[0], "c2": w["w2"].shape[0],
            "k3": w["w3"].shape[1], "hidden": w["w4"].shape[1], "c4": w["w4"].shape[0],
            "chunks": self._chunks, "adaptor": w["adaptor"] is not None, "shortcut": self._shortcut,
            "indexed": self._indices["in3"] is not None or self._indices["out4"] is not None,
        }  # fmt: skip

    def _layers(self, kind):
        """The 1x1 layers that have a launch of their own."""
        w = self._weights
        names = {"one": (), "two": ("w1",), "three": ("w3", "w4"), "four": ("w2", "w3", "w4")}[kind]
        names = [name for name in names if w[name].shape[0] and (name != "w3" or w["w4"].shape[0])]
        return names + ["adaptor"] * (self._adaptor_apart or (w["adaptor"] is not None and kind == "four"))

    def _way(self, shape, device, vectors):
        """Kind and tiles of the launches for an input of this shape, the likely best tile first."""
        key = (*shape, device, vectors)
        if key not in self._ways:
            n, c, height, width = shape
            gpu, shared = _gpu(device)
            widths = cost.Widths(**self._widths(c))
            ways = cost.candidates(
                widths, n, height, width, self._dtype.itemsize, gpu, shared, vectors or self._kind is not None
            )
            if self._kind is not None:
                ways = [way for way in ways if way.kind == self._kind]
            tiles = [way.tile for way in ways if way.kind == ways[0].kind]
            self._ways[key] = ways[0].kind, tiles, ways[0].count, cost.sentence(ways)
        kind, tiles, self.launches, self.note = self._ways[key]
        return kind, tiles

    def _layer(self, name):
        """One of the block's 1x1 layers as a launch of its own."""
        if name not in self._built:
            number = {"w1": 0, "w2": 2, "w3": 3, "w4": 4}.get(name)
            weight, bias = self._weights[name], self._weights["adaptor_bias" if number is None else f"b{name[1]}"]
            if name == "w1":  # channels by eights: the next launch loads vectors of t
                weight = padded(weight, torch.float32, 8, 1)
                bias = None if bias is None else padded(bias, torch.float32, 8)
            self._built[name] = pointwise_plan(
                weight, bias,
                in_index=self._indices.get(f"in{name[1]}"), out_index=self._indices.get(f"out{name[1]}"),
                activation="none" if number is None else self._activations[number],
                slope=1.0 if number is None else self._slopes[number],
                shuffle=1, chunks=self._chunks if name == "w3" else 1,
                interleaved=self._interleaved and name == "w3", dtype=self._dtype,
            )  # fmt: skip
        return self._built[name]

    def _pack(self, tile, kind):
        """Packed constants of the launch with the depthwise layer, by the kernel's names."""
        step, block = tile["BLOCK_K"], tile["BLOCK_C"]
        held, hidden = tile["BLOCK_N"] + tile["BLOCK_M"], tile["BLOCK_H"]
        last = kind in ("one", "two")
        key = (step, block, held, hidden, last)
        if key not in self._built:
            w, dtype = self._weights, self._dtype
            inside = w["adaptor"] is not None and not self._adaptor_apart
            columns = w["adaptor"].shape[0] if inside else 1
            taps = w["dw"].t()
            taps = torch.cat([taps, torch.zeros_like(taps[:1]) if w["db"] is None else w["db"][None]])
            packed = {"taps_ptr": padded(taps, torch.float32, block)}
            packed["w1_ptr"], packed["b1_ptr"] = _packed(w["w1"], w["b1"], dtype, step, block)
            packed["w2_ptr"], packed["b2_ptr"] = _packed(w["w2"], w["b2"], dtype, block, block, columns)
            packed |= {"PADS1": packed["w1_ptr"].shape[1] // block, "PADS2": packed["w2_ptr"].shape[1] // block}
            if inside:
                order = self._order("out2", columns)
                order = slice(None) if order is None else order.long()
                bias = None if w["adaptor_bias"] is None else w["adaptor_bias"][order]
                matrix = _packed(w["adaptor"][order], bias, dtype, step, block)
                packed["adaptor_ptr"], packed["adaptor_bias_ptr"] = matrix
            if last:
                matrix = _packed_chunks(w["w3"], w["b3"], dtype, held, self._chunks, self._interleaved, hidden)
                packed["w3_ptr"], packed["b3_ptr"] = matrix
                packed["w4_ptr"], packed["b4_ptr"] = _packed(w["w4"], w["b4"], dtype, hidden, held)
                packed["PADS_H"] = packed["w4_ptr"].shape[0] // hidden if w["w4"].shape[0] else 0
            self._built[key] = packed
        return self._built[key]

    def _order(self, name, full):
        """All `full` channels as a kernel writes them: those of an index, then the others; None without an index."""
        index = self._indices[name]
        if index is None:
            return None
        if (name, full) not in self._built:
            taken = torch.zeros(full, dtype=torch.int32, device=index.device)
            taken[index.long()] = 1
            others = torch.argsort(taken, stable=True)[: full - index.shape[0]]
            self._built[name, full] = torch.cat([index, others.int()])
        return self._built[name, full]

    def _launch(self, kind, x, first, skip, scale, out, tile):
        """The steps of `kind` that hand tiles on; returns the features behind the depthwise layer, if they are a map.

        first: the features before it, if they are one.
        """
        n, c, height, width = x.shape
        middle, last = kind != "four", kind in ("one", "two")
        packed, w = self._pack(tile, kind), self._weights
        tiles_h, tiles_w, tiles = cost.tiles_of(n, height, width, tile)
        places = 4 if INTERPRETED.value else cost.slots(_gpu(x.device)[0], tile)
        programs = min(places, tiles * (1 if middle else packed["PADS1"]))
        channels, block = packed["PADS1"] * tile["BLOCK_C"], tile["BLOCK_C"]
        columns, rows = tile["BLOCK_W"], tile["BLOCK_P"] // tile["BLOCK_W"]
        if first is None:
            t = x.new_empty(programs, rows + 2, columns + 2, channels if middle else block).permute(0, 3, 1, 2)
        if middle:
            held = tile["BLOCK_N"] + tile["BLOCK_M"]
            v = x.new_empty(programs, rows, columns, max(channels, held)).permute(0, 3, 1, 2)
        else:
            v = x.new_empty(n, height, width, channels).permute(0, 3, 1, 2)
        maps = {"x": x, "s": skip, "o": out}
        vec = _vector(*maps.values())
        column4 = self._indices["out4"] if scale is None and not self._shortcut else self._order("out4", out.shape[1])
        arguments = dict.fromkeys(NOT_ALWAYS) | {"PADS_H": 0} | packed
        arguments |= {"x_ptr": x, "t_ptr": t if first is None else first, "v_ptr": v, "skip_ptr": skip, "out_ptr": out}
        arguments |= {"index1_ptr": self._indices["in1"], "column2_ptr": self._order("out2", out.shape[1])}
        arguments |= {"index3_ptr": self._indices["in3"], "column4_ptr": column4, "scale_ptr": scale}
        arguments |= {"H": height, "W": width, "TILES_H": tiles_h, "TILES_W": tiles_w, "TILES": tiles}
        arguments |= {"C": c // vec, "K1": w["w1"].shape[1], "T": (channels if first is None else first.shape[1]) // 8}
        arguments |= {"C2": w["w2"].shape[0], "COLUMNS2": out.shape[1] // vec, "K3": w["w3"].shape[1]}
        arguments |= {"C4": w["w4"].shape[0], "COLUMNS4": out.shape[1] if column4 is None else column4.shape[0]}
        for name, tensor in (maps | {"t": arguments["t_ptr"], "v": v}).items():
            unit = 8 if name in "tv" else vec
            for axis, at in (("n", 0), ("h", 2), ("w", 3)):
                arguments[f"stride_{name}{axis}"] = tensor.stride(at) // unit
        for name, slope, activation in zip(("1", "_taps", "2", "3", "4"), self._slopes, self._activations, strict=True):
            arguments |= {f"slope{name}": slope, f"ACTIVATION{name.upper()}": activation}
        arguments |= {"FIRST": first is None, "MIDDLE": middle, "LAST": last}
        arguments |= {"CHUNKS": self._chunks, "SHORTCUT": self._shortcut, "VEC": vec}
        with torch.cuda.device_of(x):
            _depth_conv_block_fwd_kernel[(programs,)](**arguments | tile)
        return None if middle else v

    def _feed_forward(self, v, skip, scale, out):
        """The layers behind the depthwise one that the launch before has left: `out` holds u unless there is a `v`."""
        layers = self._layers("three" if v is None else "four")
        u = out
        if v is not None:
            u = self._layer("w2")(v[:, : self._weights["w2"].shape[1]], skip) if "w2" in layers else skip
        if "w4" in layers:
            self._layer("w4")(self._layer("w3")(u), u, None if self._shortcut else scale, out=out)
        elif u is not out:
            out.copy_(u)
        if self._shortcut:
            out += skip
        if scale is not None and (self._shortcut or "w4" not in layers):
            out *= scale[:, None, None]


def depth_conv_block_plan(
    w1, b1, dw, db, w2, b2, w3, b3, w4, b4, slopes, adaptor, adaptor_bias, out2_index, out4_index, in1_index, in3_index,
    gated, chunks, interleaved, shortcut, dtype,
):  # fmt: skip
    """The op with its constants packed: a callable ``(x, scale=None, out=None)``; `out` shares no memory with `x`."""
    return DepthConvBlockPlan(
        w1, b1, dw, db, w2, b2, w3, b3, w4, b4, slopes, adaptor, adaptor_bias, out2_index, out4_index, in1_index,
        in3_index, gated, chunks, interleaved, shortcut, dtype,
    )  # fmt: skip


def depth_conv_block(
    x, w1, b1, dw, db, w2, b2, w3, b3, w4, b4, slopes, adaptor=None, adaptor_bias=None, out2_index=None,
    out4_index=None, in1_index=None, in3_index=None, scale=None, gated=False, chunks=1, interleaved=False,
    shortcut=False,
):  # fmt: skip
    """The op on channels_last tensors."""
    plan = depth_conv_block_plan(
        w1, b1, dw, db, w2, b2, w3, b3, w4, b4, slopes, adaptor, adaptor_bias, out2_index, out4_index, in1_index,
        in3_index, gated, chunks, interleaved, shortcut, x.dtype,
    )  # fmt: skip
    return plan(x, scale)
