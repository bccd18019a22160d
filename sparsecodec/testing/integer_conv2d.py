"""Cases of `integer_conv2d`."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from math import log2
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from sparsecodec.ops._registry import bind, specs
from sparsecodec.testing.compare import OpCase, channel_slice

FACTOR = 2**30 - 1  # the largest


def integers(shape: tuple[int, ...], low: int, high: int, dtype: torch.dtype, generator: Generator) -> Tensor:
    """Uniform in [low, high], both possible."""
    return torch.randint(low, high + 1, shape, generator=generator).to(dtype)


def nhwc(values: Tensor) -> Tensor:
    """channels_last."""
    return values.contiguous(memory_format=torch.channels_last)


def _residual(shape: tuple[int, ...], bits: int, generator: Generator) -> Tensor:
    """Uniform over magnitudes, the least and the largest values among them."""
    top = 2.0 ** (bits - 1) - 1
    size = 2 ** (torch.rand(shape, generator=generator, dtype=torch.float64) * 1.2 * (bits - 1))
    sign = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    return nhwc((size.clamp(max=top) * sign).to({16: torch.int16, 32: torch.int32}[bits]))


def _float32(arguments: dict[str, Any]) -> tuple[str, Callable[[], object]]:
    """The layer in float32: the pinned kernel, whose LeakyReLU stands for the two factors, or torch if depthwise."""
    x, residual = (None if v is None else v.float() for v in (arguments["x"], arguments["residual"]))
    weight, bias = arguments["weight"].float(), arguments["bias"].float()
    padding, stride = arguments["padding"], arguments["stride"]
    if arguments["groups"] > 1:
        return "torch_float32", lambda: F.conv2d(x, weight, bias, stride, padding, 1, arguments["groups"])
    geometry = {"padding": padding, "stride": stride} if weight.shape[-1] > 1 or stride > 1 else {}
    op = "conv2d_act" if geometry else "pointwise"
    run = bind(specs()[op], x, weight, bias, residual=residual, activation="leaky_relu", **geometry).run
    out = run(x, residual)
    return f"{op}_float32", lambda: run(x, residual, out=out)


def _case(
    id: str, n: int, c_in: int, c_out: int, h: int, w: int, kernel: int = 1, *, depthwise: bool = False,
    weight_bits: int = 8, x_bits: int = 16, residual: int = 0, sliced: bool = False, least_shift: int = 32,
    slope: float | None = None, living: int | None = None, bench: bool = False, **options: Any,
) -> OpCase:  # fmt: skip
    """residual: its bits, 0 = none; sliced: activations are slices of wider tensors; least_shift: of any channel.

    x_bits: the values of x use so many; slope: that of the negative factor, None = another random one; living: of the
    output channels so many have weights, half of them beside each other; None = all.
    """
    padding, stride, r = options.get("padding", 0), options.get("stride", 1), options.get("shuffle", 1)
    rows, columns = ((size + 2 * padding - kernel) // stride + 1 for size in (h, w))
    terms = kernel**2 * (1 if depthwise else c_in)
    if depthwise:
        options["groups"] = c_in

    def make(dtype: torch.dtype, generator: Generator) -> dict[str, Any]:
        x = nhwc(integers((n, c_in, h, w), -(2 ** (x_bits - 1)), 2 ** (x_bits - 1) - 1, dtype, generator))
        top = min(2 ** (weight_bits - 1) - 1, 2**15 // max(terms, 1))  # sums stay below half of what int32 holds
        weight = integers((c_out, terms), -top, top, torch.int8 if weight_bits == 8 else torch.int16, generator)
        used = x_bits if "input_low" not in options else 8
        spread = 2**used * top * max(terms, 1) ** 0.5 / 6  # of the accumulators; results then fill 16 bits
        shift = max(least_shift, 30 + round(log2(spread / 2**14)))
        factor = integers((2, c_out), 2**29, FACTOR, torch.int32, generator)
        if slope is not None:
            factor[1] = (factor[0] * slope).int()
        reach = min(2**26, int(2 * spread) + 1)  # not more, or a sum of bytes would be lost beside its bias
        bias = integers((c_out,), -reach, reach, torch.int32, generator)
        if living is not None:
            zero = torch.randperm(c_out - living // 2, generator=generator)[living - living // 2 :]
            weight[zero] = 0
            bias[zero[living and 1 :]] = 0  # one of them has a bias, where any channel has something
        arguments = options | {
            "x": channel_slice(x) if sliced else x,
            "weight": weight.view(c_out, -1, kernel, kernel),
            "bias": bias,
            "multiplier": factor,
            "shift": integers((c_out,), shift, shift + 2, torch.int32, generator),
        }
        if residual:
            shape = (n, c_out // r**2, rows * r, columns * r)
            value = _residual(shape, residual, generator)
            arguments["residual"] = channel_slice(value) if sliced else value
        return arguments

    outputs = n * rows * columns * c_out
    return OpCase(
        "integer_conv2d",
        id,
        make,
        dtypes=(torch.int16,),
        must_run=frozenset({"cpu"} if bench else {"cpu", "triton"}),
        bench=bench,
        flops=2 * terms * outputs,
        bytes_moved=lambda size: size * n * c_in * h * w + outputs * options.get("bits", 16) // 8,
        rival=_float32 if bench else None,
    )


def _extreme_case(id: str, weight_bits: int, shifts: tuple[int, ...], bits: int) -> OpCase:
    """Accumulators at both ends of int32, and small ones; every pair of extreme factors with each of the shifts."""

    def make(dtype: torch.dtype, generator: Generator) -> dict[str, Any]:
        factors = ((0, 0), (FACTOR, FACTOR), (FACTOR, 0), (0, FACTOR), (1, 2**29))
        channels = list(product((-1, 1), factors, shifts))
        w = 127 if weight_bits == 8 else 32767
        c_in = 2**16 // w
        sign = torch.tensor([s for s, _, _ in channels])
        x = torch.tensor([-(2**15), 2**15 - 1, -1, 0, 1, 3, -5, 7]).view(1, 1, 2, 4).expand(1, c_in, 2, 4)
        # |bias| + 2^15 sum |weight| is 2^31 - 1
        bias = -sign * (2**31 - 1 - 2**15 * c_in * w)
        weight = sign[:, None].expand(len(channels), c_in) * w
        return {
            "x": nhwc(x.to(dtype)),
            "weight": weight.to(torch.int8 if weight_bits == 8 else torch.int16)[:, :, None, None].contiguous(),
            "bias": bias.int(),
            "multiplier": torch.tensor([f for _, f, _ in channels], dtype=torch.int32).T.contiguous(),
            "shift": torch.tensor([s for _, _, s in channels], dtype=torch.int32),
            "bits": bits,
        }

    must_run = frozenset({"cpu", "triton"})
    return OpCase("integer_conv2d", id, make, dtypes=(torch.int16,), must_run=must_run)


# What composes with a stride.
TOGETHER = {"padding": 1, "shuffle": 2, "sliced": True, "residual": 32, "residual_shift": -17}
TOGETHER |= {"input_shift": 8, "input_low": -77}

CASES = [
    # Pixels: a register tile holds 12 (AVX2: 6), a task at most 240. Columns: a block holds 32, a tile 32 or 16 (AVX2).
    _case("one-value", 1, 1, 1, 1, 1),
    _case("one-pixel", 1, 3, 5, 1, 1, 3, padding=1),
    _case("tiles-exact", 1, 32, 32, 4, 6),
    _case("tiles-and-one", 1, 33, 33, 1, 13),
    _case("half-a-block", 1, 16, 48, 5, 5, residual=16),
    _case("past-half-a-block", 1, 8, 49, 3, 5),
    _case("past-a-quarter", 1, 8, 25, 3, 5),
    _case("odd", 1, 17, 65, 7, 13, 3, padding=1, slope=0.25),
    _case("task-and-remainder", 1, 20, 40, 17, 31, slope=0.0),
    _case("batch", 3, 24, 40, 5, 6, 3, padding=1, residual=16),
    _case("empty-batch", 0, 8, 8, 4, 4),
    _case("no-padding", 2, 16, 24, 6, 8, 3),
    _case("k2", 1, 10, 20, 5, 6, 2),
    _case("k5", 1, 9, 24, 7, 6, 5, padding=2, slope=0.1),
    _case("wide-padding", 1, 8, 16, 3, 4, 3, padding=3),
    _case("int16-weights", 1, 40, 33, 5, 6, 1, weight_bits=16),
    _case("8-bit-activations", 1, 64, 33, 5, 6, 1, x_bits=8),
    # Inputs narrowed to 8 bits: to each end of their range and past it, four channels at a time.
    *(
        _case(f"narrowed{shift:+d}", 1, 64 + shift % 4, 33, 5, 7, x_bits=x_bits, input_shift=shift, input_low=low)
        for shift, x_bits, low in (
            (-15, 3, -8),
            (-9, 5, -255),
            (-8, 5, 0),
            (-7, 6, -128),
            (-1, 10, -100),
            (0, 10, 0),
            (1, 10, -255),
            (6, 16, -128),
            (7, 16, -255),
            (8, 16, -128),
            (15, 16, -1),
        )
    ),
    _case("narrowed-k3", 2, 17, 65, 7, 13, 3, padding=1, x_bits=12, input_shift=3, input_low=-90, slope=0.25),
    _case("narrowed-one", 1, 1, 1, 1, 1, input_shift=8, input_low=-128),
    _case("narrowed-tasks", 1, 20, 40, 17, 31, input_shift=8, input_low=-128, residual=16),
    _case("narrowed-shuffle", 1, 38, 72, 5, 6, shuffle=2, input_shift=8, input_low=-77, sliced=True, residual=32),
    _case("narrowed-int16-weights", 1, 40, 33, 5, 6, weight_bits=16, input_shift=8, input_low=-128),
    _case("narrowed-depthwise", 2, 37, 37, 5, 7, 3, depthwise=True, padding=1, input_shift=8, input_low=-30),
    _case("low-shifts", 1, 24, 40, 5, 6, least_shift=1, x_bits=3, weight_bits=4, bits=32),
    _case("bits-32", 1, 24, 40, 5, 6, 3, padding=1, bits=32),
    _case("residual-16", 1, 24, 70, 5, 6, residual=16, residual_shift=-2),
    _case("residual-32", 1, 24, 70, 5, 6, residual=32, residual_shift=-17, bits=32),
    _case("residual-32-to-16", 1, 24, 33, 5, 6, residual=32, residual_shift=-16),
    _case("residual-16-to-32", 1, 24, 33, 5, 6, residual=16, residual_shift=9, bits=32),
    *(
        _case(f"residual-{bits}-shift{left:+d}", 1, 8, 24, 3, 5, residual=bits, residual_shift=left, bits=32)
        for bits in (16, 32)
        for left in (-30, -29, -1, 0, 1, 29, 30)
    ),
    _case("shuffle", 1, 16, 72, 5, 6, 3, padding=1, shuffle=2, slope=0.2),
    _case("shuffle-residual", 2, 16, 12, 5, 6, shuffle=2, residual=16),
    _case("shuffle-3", 1, 16, 36, 4, 5, shuffle=3, residual=32, bits=32, residual_shift=-3),
    # Channels without weights: the CPU leaves them out where that saves a block, and has 48 pixels in a task then.
    _case("living-7", 1, 17, 70, 7, 13, living=7, residual=16, slope=0.1),
    _case("living-33-bits-32", 1, 24, 96, 5, 10, living=33, residual=32, residual_shift=-3, bits=32),
    _case("living-32-of-33", 2, 8, 33, 5, 6, living=32, residual=32, residual_shift=-16),
    _case("living-none", 1, 8, 40, 5, 6, living=0, residual=16),
    _case("living-no-residual", 1, 24, 70, 5, 6, 3, padding=1, living=5),
    _case("living-slice", 2, 17, 70, 6, 8, living=9, sliced=True, residual=16, bits=32),
    _case("living-narrowed", 1, 38, 72, 5, 11, living=9, input_shift=8, input_low=-77, residual=32, residual_shift=-9),
    _case("living-shuffle", 1, 16, 72, 5, 6, shuffle=2, living=9),
    _case("living-depthwise", 1, 70, 70, 5, 7, 3, depthwise=True, padding=1, living=9, residual=16),
    _case("slice", 2, 17, 33, 6, 8, 3, padding=1, sliced=True),
    _case("slice-residual", 2, 17, 33, 6, 8, sliced=True, residual=16),
    _case("slice-shuffle", 1, 17, 24, 6, 8, sliced=True, residual=32, shuffle=2),
    _case("depthwise", 1, 48, 48, 5, 7, 3, depthwise=True, padding=1, slope=0.25),
    _case("depthwise-odd", 2, 37, 37, 5, 7, 3, depthwise=True, padding=1, residual=16),
    _case("depthwise-tasks", 1, 20, 20, 17, 31, 3, depthwise=True, padding=1),
    _case("depthwise-k2", 1, 24, 24, 5, 7, 2, depthwise=True),
    _case("depthwise-k5", 1, 9, 9, 6, 9, 5, depthwise=True, padding=2, bits=32, residual=32, residual_shift=-4),
    _case("depthwise-slice", 1, 35, 35, 4, 7, 3, depthwise=True, padding=1, sliced=True, weight_bits=16),
    _case("depthwise-shuffle", 1, 40, 40, 4, 5, 3, depthwise=True, padding=1, shuffle=2, residual=16),
    # Strides: kernels of 3 with a padding of 1 reach the zeros below and to the right where sizes are odd; a 1x1 leaves
    # inputs out.
    *(
        _case(f"stride-2-{h}x{w}", 1, 17, 33, h, w, 3, padding=1, stride=2, slope=0.25)
        for h, w in ((1, 1), (1, 2), (2, 1), (2, 2), (3, 3), (6, 8), (7, 13), (8, 53))
    ),
    _case("stride-2-k1", 1, 24, 40, 5, 8, stride=2),
    _case("stride-2-k2", 1, 10, 20, 6, 7, 2, stride=2, weight_bits=16),
    _case("stride-3-k5", 1, 9, 24, 10, 12, 5, padding=2, stride=3, bits=32),
    _case("stride-7-k3", 1, 8, 16, 5, 16, 3, padding=1, stride=7),
    _case("stride-2-wide-padding", 1, 8, 16, 3, 4, 3, padding=3, stride=2),
    _case("stride-2-tasks", 1, 20, 40, 33, 61, 3, padding=1, stride=2, residual=16),
    _case("stride-2-batch", 3, 24, 40, 5, 6, 3, padding=1, stride=2, residual=32, residual_shift=-16),
    _case("stride-2-narrowed", 2, 17, 65, 8, 13, 3, padding=1, stride=2, input_shift=8, input_low=-90, slope=0.25),
    _case("stride-2-narrowed-int16-weights", 1, 40, 33, 5, 6, 3, padding=1, stride=2, weight_bits=16, input_low=-128),
    _case("stride-2-shuffle", 1, 16, 72, 7, 6, 3, padding=1, stride=2, shuffle=2, residual=16),
    _case("stride-2-slice", 2, 17, 33, 6, 9, 3, padding=1, stride=2, sliced=True, residual=16),
    _case("stride-2-all", 2, 38, 72, 7, 10, 3, stride=2, slope=0.1, **TOGETHER),
    _case("stride-2-living", 2, 17, 70, 7, 14, 3, padding=1, stride=2, living=7, residual=16),
    _case("stride-2-depthwise", 1, 48, 48, 6, 9, 3, depthwise=True, padding=1, stride=2, slope=0.25),
    _case("stride-2-depthwise-one-pixel", 1, 20, 20, 1, 1, 3, depthwise=True, padding=1, stride=2),
    _case("stride-2-depthwise-tasks", 1, 20, 20, 33, 61, 3, depthwise=True, padding=1, stride=2, residual=16),
    _case("stride-2-depthwise-batch", 2, 37, 37, 5, 7, 3, depthwise=True, padding=1, stride=2, residual=32),
    _case("stride-2-depthwise-all", 2, 40, 40, 5, 12, 3, stride=2, depthwise=True, **TOGETHER),
    _case("stride-3-depthwise-k5", 1, 9, 9, 10, 16, 5, depthwise=True, padding=2, stride=3, weight_bits=16, bits=32),
    *(
        _extreme_case(f"extreme-{name}-{bits}-w{weight_bits}", weight_bits, shifts, bits)
        for name, shifts in (("low", (1, 2, 29, 30, 31)), ("high", (32, 33, 46, 61, 62)), ("mixed", (1, 32, 62)))
        for bits in (16, 32)
        for weight_bits in (8, 16)
    ),
    # The entropy networks of EVC at 768x512, latent 96 (evc-tiny) and 192.
    _case("96-384-1x1-32x48", 1, 96, 384, 32, 48, slope=0.01, bench=True),
    _case("384-288-1x1-32x48", 1, 384, 288, 32, 48, slope=0.01, bench=True),
    _case("288-1152-1x1-32x48", 1, 288, 1152, 32, 48, slope=0.01, bench=True),
    _case("1152-288-1x1-32x48", 1, 1152, 288, 32, 48, residual=16, bench=True),
    _case("576-384-1x1-32x48", 1, 576, 384, 32, 48, bits=32, bench=True),
    _case("288-1152-1x1-8-bit-32x48", 1, 288, 1152, 32, 48, slope=0.01, input_shift=8, input_low=-128, bench=True),
    _case("224-704-1x1-32x48", 1, 224, 704, 32, 48, slope=0.01, bench=True),
    _case("224-704-1x1-8-bit-32x48", 1, 224, 704, 32, 48, slope=0.01, input_shift=8, input_low=-128, bench=True),
    _case("192-192-k3-32x48", 1, 192, 192, 32, 48, 3, padding=1, slope=0.01, bench=True),
    _case("288-288-dw3-32x48", 1, 288, 288, 32, 48, 3, padding=1, depthwise=True, bench=True),
]
