"""What the dense kernels do after the product, and where they put it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sparsecodec._triton._tile import dot_tiles, narrow, offset, vector

FEW = 16  # columns that a thread can store one by one without running out of registers


@triton.jit
def activate(value, slope, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu":
        value = tl.where(value < 0, 0.0, value)  # NaN stays NaN
    elif ACTIVATION == "leaky_relu":
        value = tl.where(value < 0, value * slope, value)
    elif ACTIVATION == "sigmoid_gate":
        value = value * tl.sigmoid(4 * value)
    return value


@triton.jit
def cell_of(j, C_OUT, SHUFFLE: tl.constexpr, VEC: tl.constexpr):
    """Row and column in the r x r cell (int64), and channel, that pixel shuffle gives column j; C_OUT counts in VEC."""
    channels = C_OUT // (SHUFFLE * SHUFFLE) * VEC
    cell = j // channels
    return (cell // SHUFFLE).to(tl.int64), (cell % SHUFFLE).to(tl.int64), j % channels


@triton.jit
def finish(
    value, j, in_image, n, h, w,
    column_ptr, residual_ptr, scale_ptr, out_ptr, C_OUT, COLUMNS,
    stride_rn, stride_rh, stride_rw,
    stride_on, stride_oh, stride_ow,
    SHUFFLE: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """Pixel shuffle, residual and scale of activated sums ``[P, N]`` of columns j at (n, h, w), then the store.

    Column j < C_OUT is a sum; the others, with `column_ptr` only, copy the residual. `column_ptr` names the channel of
    each column. With a shuffle columns are ordered (position in the r x r cell, channel), so that neighbours lie next
    to each other in the output. C_OUT, COLUMNS and the strides count in VEC.
    """
    # [N]
    written = j < COLUMNS * VEC
    channel = j
    if column_ptr is not None:
        channel = tl.load(column_ptr + j, mask=written, other=0)
    column_r = channel
    column_o = channel
    if SHUFFLE > 1:
        dh, dw, channel = cell_of(j, C_OUT, SHUFFLE, VEC)
        column_r = (dh * stride_rh + dw * stride_rw) * VEC + channel
        column_o = (dh * stride_oh + dw * stride_ow) * VEC + channel
    # [P]
    to_h = (h * SHUFFLE).to(tl.int64)
    to_w = (w * SHUFFLE).to(tl.int64)
    # [P, N]
    inside = in_image[:, None] & written[None, :]
    if residual_ptr is not None:
        if column_ptr is not None:
            value = tl.where((j < C_OUT * VEC)[None, :], value, 0.0)  # 0 * inf is NaN
        row = (n * stride_rn + to_h * stride_rh + to_w * stride_rw) * VEC
        residual = tl.load(residual_ptr + row[:, None] + column_r[None, :], mask=inside, other=0.0)
        value += residual.to(tl.float32)
    if scale_ptr is not None:
        value = value * tl.load(scale_ptr + channel, mask=written, other=0.0)[None, :]
    row = (n * stride_on + to_h * stride_oh + to_w * stride_ow) * VEC
    value = narrow(value, out_ptr.dtype.element_ty)
    tl.store(out_ptr + row[:, None] + column_o[None, :], value, mask=inside)


def column_rows(c_out: int, shuffle: int, chunks: int = 1, interleaved: bool = False) -> torch.Tensor:
    """``[chunks, columns]``: the row of the weight behind each column of each chunk."""
    rows = torch.arange(c_out)
    if shuffle > 1:
        return rows.view(-1, shuffle**2).t().reshape(1, -1)
    return rows.view(-1, chunks).t() if interleaved else rows.view(chunks, -1)


class Destination:
    """Where a product of `columns` columns goes: the launcher's half of `finish`."""

    def __init__(self, columns: int, out_index: torch.Tensor | None, shuffle: int, dtype: torch.dtype) -> None:
        self.columns = columns
        self.out_index = None if out_index is None else out_index.to(torch.int32, copy=True).contiguous()
        self.shuffle = shuffle
        self.dtype = dtype
        self._orders: dict[int, torch.Tensor] = {}  # channels of the residual -> all of them in the kernel's order

    def order(self, residual, scale, out) -> torch.Tensor | None:
        """`column_ptr`: only the channels with a sum if the others already hold the result."""
        if self.out_index is None:
            return None
        if scale is None and out is not None and out.data_ptr() == residual.data_ptr():
            return self.out_index
        full = residual.shape[1]
        if full not in self._orders:
            # The channels of `out_index`, then all others, found without waiting for the device.
            taken = torch.zeros(full, dtype=torch.int32, device=self.out_index.device)
            taken[self.out_index.long()] = 1
            others = torch.argsort(taken, stable=True)[: full - self.columns]
            self._orders[full] = torch.cat([self.out_index, others.int()])
        return self._orders[full]

    def empty(self, n: int, height: int, width: int, residual, device) -> torch.Tensor:
        """The result for `height` x `width` pixels before the shuffle."""
        r = self.shuffle
        channels = residual.shape[1] if self.out_index is not None else self.columns // r**2
        shape = (n, channels, height * r, width * r)
        return torch.empty(shape, dtype=self.dtype, device=device, memory_format=torch.channels_last)

    def arguments(self, order, residual, scale, out) -> dict[str, object]:
        """The arguments of the kernel that `finish` takes, VEC as VEC_OUT."""
        sizes = {"C_OUT": self.columns, "COLUMNS": self.columns if order is None else order.shape[0]}
        for name, tensor in (("r", residual), ("o", out)):
            for axis, at in (("n", 0), ("h", 2), ("w", 3)):
                sizes[f"stride_{name}{axis}"] = 0 if tensor is None else tensor.stride(at)
        starts = [offset(tensor) for tensor in (residual, out) if tensor is not None]
        unit = vector(*starts, *sizes.values(), self.columns // self.shuffle**2)
        pointers = {"column_ptr": order, "residual_ptr": residual, "scale_ptr": scale, "out_ptr": out}
        options = {"SHUFFLE": self.shuffle, "VEC_OUT": unit}
        return pointers | options | {name: size // unit for name, size in sizes.items()}

    def tiles(self, read, written, in_index) -> tuple[dict[str, int], ...]:
        """The launch options to choose among, for the arguments of `source` and of this object."""
        columns = written["COLUMNS"] * written["VEC_OUT"]
        loads = in_index is None and read["VEC_IN"] > 1
        stores = written["column_ptr"] is None and (written["VEC_OUT"] > 1 or columns <= FEW)
        return dot_tiles(self.dtype.itemsize, columns, loads and stores)
