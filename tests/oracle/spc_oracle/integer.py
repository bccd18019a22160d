"""docs/portable.md, sections 1 and 2: networks on integers. Every value fits into 64 bits, every sum into 32."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import floor, frexp

import numpy as np

Tensors = Mapping[str, np.ndarray]


def shifted(v: np.ndarray, n: int) -> np.ndarray:
    v = v.astype(np.int64)
    moved = v << n if n >= 0 else (v + (1 << (-n - 1))) >> -n
    return np.clip(moved, -(1 << 30), (1 << 30) - 1)


def narrow(v: np.ndarray, t: int) -> np.ndarray:
    return np.clip(shifted(v, -16 - t), -(1 << 15), (1 << 15) - 1)


@dataclass
class Layer:
    """A convolution and what follows it. Tensors have numbers: 0 is the network's input, i the result of layer i.

    `x` is the tensor it reads, `added` the one that is added to its result; `stride` is that of a transposed one.
    """

    name: str
    x: int
    slope: Fraction = Fraction(1)
    shuffle: int = 1
    added: int | None = None
    stride: int = 1


def _power(scale: np.ndarray) -> int:
    mantissa, exponent = frexp(float(scale.reshape(-1)[0]))
    assert mantissa == 0.5, "input_scale is a power of two"
    return exponent - 1


BYTES = -255  # the least input_low of a layer that reads 8 bits
HEADROOM = 7


def reads_bytes(input_low: np.ndarray) -> bool:
    return int(input_low.reshape(-1)[0]) >= BYTES


def _as_convolution(weight: np.ndarray, s: int, p: int) -> np.ndarray:
    """The weight of a transposed convolution -> that of a convolution in front of a pixel shuffle by s."""
    c_in, c_out, k, _ = weight.shape
    reach = max(abs(d) for d in range(-k, k + 1) for i in range(s) if 0 <= i + p - s * d < k)
    wide = np.zeros((c_out * s * s, c_in, 2 * reach + 1, 2 * reach + 1), weight.dtype)
    for i in range(s):
        for j in range(s):
            for d in range(-reach, reach + 1):
                for g in range(-reach, reach + 1):
                    u, v = i + p - s * d, j + p - s * g
                    if 0 <= u < k and 0 <= v < k:
                        wide[s * i + j :: s * s, :, d + reach, g + reach] = weight[:, :, u, v].T
    return wide


def _sums(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """sum weight x with zeros around; binary64 holds these sums exactly."""
    out, per_group, k, _ = weight.shape
    groups = x.shape[0] // per_group
    p = k // 2
    padded = np.pad(x, ((0, 0), (p, p), (p, p))).astype(np.float64)
    height, width = x.shape[1:]
    acc = np.zeros((groups, out // groups, height * width))
    for a in range(k):
        for b in range(k):
            piece = padded[:, a : a + height, b : b + width].reshape(groups, per_group, -1)
            acc += weight[:, :, a, b].astype(np.float64).reshape(groups, -1, per_group) @ piece
    return acc.reshape(out, height, width).astype(np.int64)


def _shuffled(v: np.ndarray, s: int) -> np.ndarray:
    c, h, w = v.shape
    return v.reshape(c // (s * s), s, s, h, w).transpose(0, 3, 1, 4, 2).reshape(c // (s * s), h * s, w * s)


class Network:
    """Layers with the tensors of a portable model, and the channels of those that were narrowed alone."""

    def __init__(self, layers: list[Layer], tensors: Tensors, kept: Mapping[str, Mapping]) -> None:
        self.layers = layers
        self.tensors = tensors
        self.kept = kept
        # int16, and the largest X, where convolutions read; int32 and -16 elsewhere.
        self.exponents: list[int | None] = [None] * (len(layers) + 1)
        for layer in layers:
            scale = _power(self._of(layer, "input_scale"))
            if reads_bytes(self._of(layer, "input_low")):
                scale -= HEADROOM
            known = self.exponents[layer.x]
            self.exponents[layer.x] = scale if known is None else max(known, scale)

    def _of(self, layer: Layer, name: str) -> np.ndarray | None:
        """A tensor of a layer; a layer that was narrowed alone calls itself `conv`."""
        return self.tensors.get(f"{layer.name}.{name}", self.tensors.get(f"{layer.name}.conv.{name}"))

    def _places(self, layer: Layer) -> list[int]:
        """Where the channels of a layer that was narrowed alone stand in the sum; which may be narrower itself."""
        wide = self.kept[f"branch:{layer.name}"]
        root: Layer | None = layer
        while root is not None and root.added is not None:
            root = self.layers[root.added - 1] if root.added > 0 else None
        name = "" if root is None else root.name
        space = self.kept.get(name, {"kept": range(wide["width"])})["kept"]
        return [list(space).index(channel) for channel in wide["kept"]]

    @property
    def input_exponent(self) -> int:
        return self.exponents[0]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """``[C, H, W]`` int16 values with the input's exponent -> ``[C', H', W']`` int32 values, exponent -16."""
        results = [x]
        for number, layer in enumerate(self.layers, 1):
            results.append(self._convolve(layer, self.exponents[number], results))
        return results[-1]

    def _convolve(self, layer: Layer, result_exponent: int | None, results: list[np.ndarray]) -> np.ndarray:
        of = {name: self._of(layer, name) for name in ("weight", "bias", "weight_scale")}
        t = self.exponents[layer.x]
        u = -16 if result_exponent is None else result_exponent
        weight, copies = of["weight"], 1
        if layer.stride > 1:
            weight, copies = _as_convolution(weight, layer.stride, 2), layer.stride**2
        own, low = _power(self._of(layer, "input_scale")), self._of(layer, "input_low")
        x = results[layer.x]
        if reads_bytes(low):
            low = int(low.reshape(-1)[0])
            x, t = np.clip(shifted(x, t - own), low, low + 255), own
        acc = _sums(x, weight)
        if of["bias"] is not None:
            bias = of["bias"].astype(np.int64)
            assert own <= t
            moved = bias if own == t else (bias + (1 << (t - own - 1))) >> (t - own)
            acc += np.repeat(moved, copies)[:, None, None]
        assert np.abs(acc).max(initial=0) < 1 << 31
        v = np.empty_like(acc)
        for o in range(len(acc)):
            mantissa, exponent = frexp(float(of["weight_scale"].reshape(-1)[o // copies]))
            m, k = int(mantissa * (1 << 15)), exponent - 15
            e = k + t - u
            shift = min(15 - e, 62)
            assert shift >= 1
            f0 = floor(Fraction(m) * Fraction(2) ** (shift + e) + Fraction(1, 2))
            f1 = floor(layer.slope * f0 + Fraction(1, 2))
            f = np.where(acc[o] >= 0, f0, f1)
            v[o] = np.clip((acc[o] * f + (1 << (shift - 1))) >> shift, -(1 << 30), (1 << 30) - 1)
        if f"{layer.name}.conv.weight" in self.tensors:
            some, places = v, self._places(layer)
            v = np.zeros((results[layer.added].shape[0], *some.shape[1:]), np.int64)
            v[places] = some
        v = _shuffled(v, layer.shuffle)
        if layer.added is not None:
            exponent = self.exponents[layer.added]
            v = v + shifted(results[layer.added], (-16 if exponent is None else exponent) - u)
        bits = 31 if result_exponent is None else 15
        return np.clip(v, -(1 << bits), (1 << bits) - 1)
