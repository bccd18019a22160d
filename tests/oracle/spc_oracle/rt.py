"""docs/portable.md, section 6: payloads of DCVC-RT to symbols, States and pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import floor, frexp

import numpy as np

from spc_oracle.integer import Tensors, _power, _shuffled, _sums, narrow, reads_bytes, shifted
from spc_oracle.lanes import Decoder
from spc_oracle.portable import _call, _dequantised, _row_numbers
from spc_oracle.tables import Row, rows

QUARTERS = ((0, 1, 2, 3), (3, 2, 1, 0), (2, 3, 0, 1), (1, 0, 3, 2))  # by pass and cell
HALVES = ((0, 1, 1, 0), (1, 0, 0, 1))


def _constants() -> dict[int, int]:
    """round(2^30 exp(-2^k)), from the series of exp(-2^-30), then by squaring: exact rationals all the way."""
    x = Fraction(1, 1 << 30)
    value = 1 - x + x**2 / 2 - x**3 / 6 + x**4 / 24
    found = {}
    for k in range(-30, 5):
        found[k] = floor(value * (1 << 30) + Fraction(1, 2))
        value = Fraction(floor(value * value * (1 << 200)), 1 << 200)
    return found


C = _constants()


@dataclass
class Tensor:
    v: np.ndarray  # [C, H, W] int64
    exponent: int


def _decay(n: np.ndarray, p: int) -> np.ndarray:
    e = np.full_like(n, 1 << 30)
    for bit in range(16):
        if p + bit >= -30:
            e = np.where(n >> bit & 1, (e * C.get(p + bit, 0) + (1 << 29)) >> 30, e)
    return e


def _round(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (2 * a + b) // (2 * b)


def gate(x: Tensor) -> Tensor:
    n = np.abs(x.v)
    e = _decay(n, x.exponent + 2)
    return Tensor(np.maximum(x.v, 0) - _round(n * e, (1 << 30) + e), x.exponent)


def sigmoid(v: np.ndarray, u: int) -> np.ndarray:
    e = _decay(np.abs(v), u)
    r = _round(e << 15, (1 << 30) + e)
    return np.where(v < 0, r, np.minimum((1 << 15) - r, (1 << 15) - 1))


def _scaled(acc: np.ndarray, factor: float, t: int, u: int) -> np.ndarray:
    """acc factor 2^(t - u), as section 2 rounds it."""
    mantissa, exponent = frexp(abs(factor))
    m, e = int(mantissa * (1 << 15)), exponent - 15 + t - u
    shift = min(15 - e, 62)
    assert shift >= 1
    f = floor(Fraction(m) * Fraction(2) ** (shift + e) + Fraction(1, 2))
    # Products have up to 62 bits.
    return np.clip((acc * f + (1 << (shift - 1))) >> shift, -(1 << 30), (1 << 30) - 1)


def _finished(v: np.ndarray, u: int | None, added: Tensor | None) -> Tensor:
    t = -16 if u is None else u
    if added is not None:
        v = v + shifted(added.v, added.exponent - t)
    bits = 31 if u is None else 15
    return Tensor(np.clip(v, -(1 << bits), (1 << bits) - 1), t)


def together(a: np.ndarray, b: np.ndarray, exponent: int) -> Tensor:
    return Tensor(np.concatenate([a, b]), exponent)


class Part:
    """One of both models: its tensors are those that begin with `name`."""

    def __init__(self, name: str, tensors: Tensors, gaussians: list[Row]) -> None:
        self.of = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
        self.z_rows = rows(*(self.of[f"portable.z_{key}"].tolist() for key in ("cdf", "lengths", "offsets")))
        self.y_rows = [Row((0, 65535, 65536), 0), *gaussians]
        self.exponents = self.of["portable.exponents"].tolist()

    def asks(self, name: str) -> int:
        """The exponent with which the first convolution of a layer, block, or up- or down-block reads."""
        for first in ("", ".adaptor", ".dc.0", ".up.conv.0", ".conv.0", ".down"):
            if f"{name}{first}.input_scale" in self.of:
                assert not reads_bytes(self.of[f"{name}{first}.input_low"]), "this decoder reads W8A16"
                return _power(self.of[f"{name}{first}.input_scale"])
        raise KeyError(name)

    def conv(self, name: str, x: Tensor, u: int | None, added: Tensor | None = None, shuffle: int = 1) -> Tensor:
        weight, own = self.of[f"{name}.weight"], self.asks(name)
        v = x.v
        if weight.shape[2] == 2:
            c, h, w = v.shape
            v = v.reshape(c, h // 2, 2, w // 2, 2).transpose(0, 2, 4, 1, 3).reshape(4 * c, h // 2, w // 2)
            weight = weight.reshape(len(weight), -1, 1, 1)
        assert own <= x.exponent
        bias, left = self.of[f"{name}.bias"].astype(np.int64), x.exponent - own
        acc = _sums(v, weight) + (bias if left == 0 else (bias + (1 << (left - 1))) >> left)[:, None, None]
        scales = self.of[f"{name}.weight_scale"].reshape(-1)
        t = -16 if u is None else u
        result = np.stack([_scaled(a, float(s), x.exponent, t) for a, s in zip(acc, scales, strict=True)])
        return _finished(_shuffled(result, shuffle), u, added)

    def factor(self, name: str, rate: int, x: Tensor, u: int) -> Tensor:
        values = self.of[name][rate].reshape(-1)
        signed = [a if f >= 0 else -a for a, f in zip(x.v, values, strict=True)]
        return _finished(
            np.stack([_scaled(a, float(f), x.exponent, u) for a, f in zip(signed, values, strict=True)]), u, None
        )

    def dcb(self, name: str, x: Tensor, u: int | None, shortcut: bool = False) -> Tensor:
        if f"{name}.adaptor.weight" in self.of:
            x = self.conv(f"{name}.adaptor", x, self.asks(f"{name}.dc.0"))
        d = gate(self.conv(f"{name}.dc.0", x, self.asks(f"{name}.dc.2")))
        d = self.conv(f"{name}.dc.2", d, self.asks(f"{name}.dc.3"))
        o = self.conv(f"{name}.dc.3", d, self.asks(f"{name}.ffn.0"), x)
        h = gate(self.conv(f"{name}.ffn.0", o, self.asks(f"{name}.ffn.2")))
        low, high = np.split(h.v, 2)
        h = Tensor(np.clip(low + high, -(1 << 15), (1 << 15) - 1), h.exponent)
        if shortcut:
            o = _finished(_scaled(o.v, 1.0, o.exponent, -16), None, x)
        return self.conv(f"{name}.ffn.2", h, u, o)

    def run(self, names: list[str], x: Tensor, u: int | None) -> Tensor:
        """Layers one behind the other."""
        for name, after in zip(names, [*names[1:], None], strict=True):
            t = u if after is None else self.asks(after)
            if f"{name}.weight" in self.of:
                x = self.conv(name, x, t)
            elif f"{name}.up.conv.0.weight" in self.of:
                x = self.conv(f"{name}.up.conv.0", x, self.asks(f"{name}.conv"), shuffle=2)
                x = self.dcb(f"{name}.conv", x, t, shortcut=True)
            elif f"{name}.down.weight" in self.of:
                x = self.dcb(f"{name}.conv", self.conv(f"{name}.down", x, self.asks(f"{name}.conv")), t, shortcut=True)
            else:
                x = self.dcb(name, x, t)
        return x

    def layers(self, path: str) -> list[str]:
        """``path.0``, ``path.1``, ... as far as there are any."""
        found: list[str] = []
        while any(key.startswith(f"{path}.{len(found)}.") for key in self.of):
            found.append(f"{path}.{len(found)}")
        return found

    def hyper_latent(self, decoder: Decoder, rate: int, h: int, w: int) -> np.ndarray:
        channels = len(self.z_rows) // len(self.of["bit_estimator_z.f1.h"])
        numbers = np.broadcast_to(np.arange(channels)[:, None, None] + rate * channels, (channels, h, w))
        return _call(decoder, numbers, self.z_rows)

    def passes(self, decoder: Decoder, cells: tuple, scale: np.ndarray, mean: np.ndarray) -> Iterator[np.ndarray]:
        """Yields what is known of the latent before each further pass, and is sent its scales and means."""
        c, h, w = scale.shape
        groups = max(cells[0]) + 1
        cell = 2 * (np.arange(h) % 2)[:, None] + np.arange(w) % 2
        y = np.zeros((c, h, w), np.int64)
        for number, group_of_cell in enumerate(cells):
            if number:
                scale, mean = yield y
            group = np.array(group_of_cell)[cell]
            here = np.repeat(np.arange(groups), c // groups)[:, None, None] == group
            numbers = _row_numbers(scale, {"portable.thresholds": self.of["portable.thresholds"]})
            dense = np.where(here, numbers, 0).reshape(groups, c // groups, h, w).sum(0)
            symbols = np.concatenate([_call(decoder, dense, self.y_rows)] * groups)
            y = np.where(here, _dequantised(symbols, mean), y)
        yield y


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.clip((a * b + (1 << 15)) >> 16, -(1 << 30), (1 << 30) - 1)


def _fixed(z: np.ndarray) -> np.ndarray:
    return _dequantised(z, np.zeros((1, 1, 1), np.int64))


def intra(payload: bytes, part: Part, h: int, w: int, qp: int) -> np.ndarray:
    """The picture, ``[3, 16 h, 16 w]``, exponent -16."""
    latent, hyper = len(part.of["y_spatial_prior_reduction.weight"]), (-(-h // 4), -(-w // 4))
    channels = len(part.z_rows) // len(part.of["bit_estimator_z.f1.h"])
    decoder = Decoder(payload, channels * hyper[0] * hyper[1] + latent * h * w)
    z = _fixed(part.hyper_latent(decoder, qp, *hyper))
    names = [*part.layers("hyper_dec"), *part.layers("y_prior_fusion")]
    t = part.asks(names[0])
    prior = part.run(names, Tensor(narrow(z, t), t), None).v[:, :h, :w]
    scale, mean = np.split(prior[2:], 2)
    step = (1 << 15) + 3 * sigmoid(narrow(prior[1:2], -11), -11)
    adaptors = [f"y_spatial_prior_adaptor_{i}" for i in (1, 2, 3)]
    t, own = max(part.asks(name) for name in adaptors), part.asks("y_spatial_prior_reduction")
    context = part.conv("y_spatial_prior_reduction", Tensor(narrow(prior, own), own), t)
    steps = part.passes(decoder, QUARTERS, scale, mean)
    y = next(steps)
    for name in adaptors:
        read = part.dcb(name, together(narrow(y, t), context.v, t), part.asks("y_spatial_prior.0"))
        scale, mean = np.split(part.run(part.layers("y_spatial_prior"), read, None).v, 2)
        y = steps.send((scale, mean))
    decoder.finish()
    names = part.layers("dec.dec_1")
    t = part.asks(names[0])
    trunk = part.run(names, Tensor(narrow(_product(y, step), t), t), part.exponents[0])
    tail = part.dcb("dec.dec_2", part.factor("q_scale_dec", qp, trunk, part.asks("dec.dec_2")), None)
    return _shuffled(np.clip(tail.v, 0, 1 << 16), 8)


def start(picture: np.ndarray, part: Part) -> Tensor:
    """The State behind a frame alone."""
    t = part.asks("feature_adaptor_i")
    return Tensor(narrow(picture, t), t)


def inter(payload: bytes, part: Part, state: Tensor, rate: int) -> tuple[np.ndarray, Tensor]:
    """(picture, State); `rate` is shifted."""
    c, h, w = state.v.shape
    if c == 3:
        name, (h, w) = "feature_adaptor_i", (h // 16, w // 16)
        v = state.v.reshape(3, 2 * h, 8, 2 * w, 8).transpose(0, 2, 4, 1, 3).reshape(192, 2 * h, 2 * w)
        state = Tensor(v, state.exponent)
    else:
        name, (h, w) = "feature_adaptor_p", (h // 2, w // 2)
    shared, behind = part.layers("feature_extractor.conv1"), part.layers("feature_extractor.conv2")
    a = part.run([name, *shared], state, part.asks(behind[0]))
    decode = [*part.layers("decoder.conv1"), "decoder.conv2"]
    context = part.run(behind, a, part.asks(decode[0]))
    fusion, spatial = part.layers("y_prior_fusion.conv"), part.layers("y_spatial_prior.conv")
    own = part.asks("temporal_prior_encoder")
    t = part.asks(fusion[0])
    temporal = part.run(["temporal_prior_encoder"], part.factor("q_feature", rate, a, own), t)

    latent, hyper = len(part.of[f"{spatial[-1]}.weight"]) // 2, (-(-h // 4), -(-w // 4))
    channels = len(part.z_rows) // len(part.of["bit_estimator_z.f1.h"])
    decoder = Decoder(payload, channels * hyper[0] * hyper[1] + latent * h * w)
    z = _fixed(part.hyper_latent(decoder, rate, *hyper))
    names = part.layers("hyper_decoder.conv")
    own = part.asks(names[0])
    hyper_result = part.run(names, Tensor(narrow(z, own), own), t).v[:, :h, :w]
    prior = part.run(fusion, together(hyper_result, temporal.v, t), None).v
    step, scale, mean = np.split(prior, 3)
    t = part.asks(spatial[0])
    steps = part.passes(decoder, HALVES, scale, mean)
    read = together(narrow(next(steps), t), narrow(prior, t), t)
    scale, mean = np.split(part.run(spatial, read, None).v, 2)
    y_hat = _product(steps.send((scale, mean)), np.maximum(step, 1 << 15))
    decoder.finish()

    own, recon = part.asks("decoder.up.conv.0"), part.layers("recon_generation_net.conv")
    up = part.conv("decoder.up.conv.0", Tensor(narrow(y_hat, own), own), context.exponent, shuffle=2)
    decoded = part.run(decode, together(up.v, context.v, context.exponent), part.exponents[0])
    t = max(part.asks("feature_adaptor_p"), part.asks(recon[0]))
    feature = part.factor("q_decoder", rate, decoded, t)
    trunk = part.run(recon, feature, part.exponents[1])
    head = part.conv(
        "recon_generation_net.head",
        part.factor("q_recon", rate, trunk, part.asks("recon_generation_net.head")),
        None,
    )
    return _shuffled(np.clip(head.v, 0, 1 << 16), 8), feature
