"""`prior_head`: one kernel, one launcher."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sparsecodec._triton._autotune import choose
from sparsecodec._triton._epilogue import activate
from sparsecodec._triton._spatial_prior import cells_of, groups_of, pad_thresholds, table_index
from sparsecodec._triton._tile import PAD_K, PAD_N, multiply, packed_product, source, vector


def _tile(p, n, k, warps):
    return {"BLOCK_P": p, "BLOCK_N": n, "BLOCK_K": k, "num_warps": warps, "num_stages": 2, "enable_fp_fusion": False}


# For each of two products, float32 as plain FMA. Small: a latent has few positions, a fourth of them in each class.
# None has been timed on a GPU.
TILES = (_tile(32, 32, 32, 4), _tile(64, 32, 16, 8), _tile(32, 16, 32, 4), _tile(32, 32, 64, 4))

UNSPECIALISED = (
    "H", "W", "ROWS", "COLUMNS", "CLASS", "C", "C_IN", "K_PADS", "N_PADS", "THRESHOLDS",
    "SCALE_ROW", "MEAN_ROW", "GROUP_ROWS",
    "stride_xn", "stride_xh", "stride_xw",
    "stride_rn", "stride_rh", "stride_rw",
    "stride_mn", "stride_mh", "stride_mw",
)  # fmt: skip


@triton.jit(do_not_specialize=UNSPECIALISED)
def _prior_head_fwd_kernel(
    x_ptr, weight_ptr, bias_ptr, residual_ptr, thresholds_ptr, indexes_ptr, means_ptr,
    H, W, ROWS, COLUMNS, CLASS, C, C_IN, K_PADS, N_PADS, THRESHOLDS, slope, skip,
    SCALE_ROW, MEAN_ROW, GROUP_ROWS,
    stride_xn, stride_xh, stride_xw,
    stride_rn, stride_rh, stride_rw,
    stride_mn, stride_mh, stride_mw,
    CELL0: tl.constexpr, CELL1: tl.constexpr, CELL2: tl.constexpr, CELL3: tl.constexpr,
    SPACING: tl.constexpr, ACTIVATION: tl.constexpr, SKIP: tl.constexpr, STEPS: tl.constexpr,
    VEC_IN: tl.constexpr, VEC_OUT: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program: the scales and means of BLOCK_P positions of one class, BLOCK_N of the C channels of a group.

    With SPACING = 2 the positions fall into 2 x 2 classes by the parities of row and column, CLASS = N*ROWS*COLUMNS of
    them in each, those beyond the image included; a class has one group, hence one set of weights. Weights and biases
    are packed as ``[G, 2, N_PADS * PAD_N, K_PADS * PAD_K]``; in the residual the scales of group g begin at channel
    SCALE_ROW + g * GROUP_ROWS. C_IN and the strides of x count in VEC_IN; C, these rows and other strides in VEC_OUT.
    """
    blocks = tl.cdiv(C * VEC_OUT, BLOCK_N)
    tiles = tl.cdiv(CLASS, BLOCK_P)
    pid = tl.program_id(0)
    cell = pid // blocks // tiles
    upper = tl.where(cell % 2 == 0, CELL0, CELL1)
    lower = tl.where(cell % 2 == 0, CELL2, CELL3)
    group = tl.where(cell // 2 == 0, upper, lower)

    # [BLOCK_P]
    p = pid // blocks % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    w = p % COLUMNS * SPACING + cell % 2
    h = p // COLUMNS % ROWS * SPACING + cell // 2
    in_image = (p < CLASS) & (h < H) & (w < W)
    n = (p // COLUMNS // ROWS).to(tl.int64)
    h = h.to(tl.int64)
    w = w.to(tl.int64)
    x_row = (n * stride_xn + h * stride_xh + w * stride_xw) * VEC_IN

    # [BLOCK_N]
    c = pid % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    scale_row = group * 2 * N_PADS * PAD_N + c
    mean_row = scale_row + N_PADS * PAD_N
    scale_weight_ptr = weight_ptr + scale_row.to(tl.int64) * (K_PADS * PAD_K)
    mean_weight_ptr = weight_ptr + mean_row.to(tl.int64) * (K_PADS * PAD_K)

    # [BLOCK_P, BLOCK_N]; the sums start at the bias, in the order of the CPU.
    scale = tl.zeros((BLOCK_P, BLOCK_N), tl.float32) + tl.load(bias_ptr + scale_row)[None, :]
    mean = tl.zeros((BLOCK_P, BLOCK_N), tl.float32) + tl.load(bias_ptr + mean_row)[None, :]
    for start in range(0, C_IN * VEC_IN, BLOCK_K):
        # [BLOCK_K]
        k = start + tl.arange(0, BLOCK_K)
        # [BLOCK_P, BLOCK_K]
        inside = in_image[:, None] & (k < C_IN * VEC_IN)[None, :]
        x = tl.load(x_ptr + x_row[:, None] + k[None, :], mask=inside, other=0.0)
        # [BLOCK_K, BLOCK_N]
        scale = multiply(x, tl.load(scale_weight_ptr[None, :] + k[:, None]), scale)
        mean = multiply(x, tl.load(mean_weight_ptr[None, :] + k[:, None]), mean)

    # [BLOCK_P, BLOCK_N]
    scale = activate(scale, slope, ACTIVATION)
    mean = activate(mean, slope, ACTIVATION)
    inside = in_image[:, None] & (c < C * VEC_OUT)[None, :]
    if residual_ptr is not None:
        row = (n * stride_rn + h * stride_rh + w * stride_rw) * VEC_OUT
        column = (SCALE_ROW + group * GROUP_ROWS) * VEC_OUT + c
        scale += tl.load(residual_ptr + row[:, None] + column[None, :], mask=inside, other=0.0)
        column = (MEAN_ROW + group * GROUP_ROWS) * VEC_OUT + c
        mean += tl.load(residual_ptr + row[:, None] + column[None, :], mask=inside, other=0.0)
    index = table_index(scale, thresholds_ptr, THRESHOLDS, STEPS)
    if SKIP:
        index = tl.where(scale <= skip, -1, index)
    out = ((n * C * VEC_OUT)[:, None] + c[None, :]) * H * W + (h * W + w)[:, None]
    tl.store(indexes_ptr + out, index.to(tl.int16), mask=inside)
    row = (n * stride_mn + h * stride_mh + w * stride_mw) * VEC_OUT
    tl.store(means_ptr + row[:, None] + c[None, :], mean, mask=inside)


def _coded_rows(rows, groups, order):
    """``[G, 2, C]``: the rows of each group's scales and of its means."""
    rows = torch.arange(rows)
    if order == "by_group":
        return rows.view(groups, 2, -1)
    runs = rows.view(2, groups, -1)
    return (runs if order == "scales_means" else runs.flip(0)).transpose(0, 1)


def prior_head_plan(weight, thresholds, bias, part, order, activation, slope, skip, dtype):
    """The op with its constants packed: a callable ``(x, residual=None, out=None)``; `out` is (indexes, means)."""
    groups = groups_of(part)
    spacing = 1 if groups == 1 else 2
    c_in = weight.numel() // weight.shape[0]
    rows = _coded_rows(weight.shape[0], groups, order)
    channels = rows.shape[2]
    firsts = {"SCALE_ROW": int(rows[0, 0, 0]), "MEAN_ROW": int(rows[0, 1, 0])}
    firsts["GROUP_ROWS"] = int(rows[-1, 0, 0] - rows[0, 0, 0]) // max(groups - 1, 1)
    weight, bias = packed_product(weight.reshape(1, -1, c_in), bias, rows.flatten(0, 1), dtype)
    thresholds, count = pad_thresholds(thresholds, dtype), thresholds.shape[0]
    options = {"ACTIVATION": activation, "SKIP": skip is not None, "STEPS": count.bit_length(), "SPACING": spacing}

    def empty(x):
        shape = (x.shape[0], channels, *x.shape[2:])
        indexes = torch.empty(shape, dtype=torch.int16, device=x.device)
        return indexes, torch.empty(shape, dtype=dtype, device=x.device, memory_format=torch.channels_last)

    def run(x, residual=None, out=None):
        n, _, height, width = x.shape
        out = empty(x) if out is None else out
        if out[0].numel() == 0:
            return out
        read = source(x, c_in)
        in_class = n * triton.cdiv(height, spacing) * triton.cdiv(width, spacing)

        def launch(tile, indexes, means):
            sizes = {"C": channels, **firsts}
            for name, tensor in (("r", residual), ("m", means)):
                for axis, at in (("n", 0), ("h", 2), ("w", 3)):
                    sizes[f"stride_{name}{axis}"] = 0 if tensor is None else tensor.stride(at)
            unit = vector(*sizes.values())
            tiles = triton.cdiv(in_class, tile["BLOCK_P"]) * triton.cdiv(channels, tile["BLOCK_N"])
            with torch.cuda.device_of(x):
                _prior_head_fwd_kernel[(spacing**2 * tiles,)](
                    x_ptr=x, weight_ptr=weight, bias_ptr=bias, residual_ptr=residual, thresholds_ptr=thresholds,
                    indexes_ptr=indexes, means_ptr=means,
                    H=height, W=width, ROWS=triton.cdiv(height, spacing), COLUMNS=triton.cdiv(width, spacing),
                    CLASS=in_class, K_PADS=weight.shape[2] // PAD_K.value, N_PADS=weight.shape[1] // PAD_N.value,
                    THRESHOLDS=count, slope=slope, skip=0.0 if skip is None else skip,
                    **read, **{name: size // unit for name, size in sizes.items()}, VEC_OUT=unit,
                    **cells_of(part), **options, **tile,
                )  # fmt: skip

        def trial():
            scratch = empty(x)
            return lambda tile: launch(tile, *scratch)

        key = (c_in, channels, groups, in_class.bit_length(), read["VEC_IN"] > 1, residual is None)
        launch(choose("prior_head", key, TILES, x.device, trial), *out)
        return out

    return run


def prior_head(
    x,
    weight,
    thresholds,
    bias=None,
    residual=None,
    part="all",
    order="scales_means",
    activation="none",
    slope=0.01,
    skip=None,
):
    """The op on channels_last tensors."""
    plan = prior_head_plan(weight, thresholds, bias, part, order, activation, slope, skip, x.dtype)
    return plan(x, residual)
