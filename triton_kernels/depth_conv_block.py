"""`depth_conv_block`: one kernel for one, two or more launches of a block."""

from __future__ import annotations

import functools

import torch

from sparsecodec._triton import _depth_conv_cost as cost
from sparsecodec._triton._autotune import choose
from sparsecodec._triton._depth_conv_kernel import _depth_conv_block_fwd_kernel
from sparsecodec._triton._tile import INTERPRETED, padded, vector
from sparsecodec._triton.pointwise import pointwise_plan

NOT_ALWAYS = ("adaptor_ptr", "adaptor_bias_ptr", "w3_ptr", "b3_ptr", "w4_ptr", "b4_ptr")


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
        *slopes, rest = map(float, slopes if len(slopes) == 6 else (*slopes, slopes[3]))
        self._slopes, self._rest = slopes, None if rest == slopes[3] else rest  # a kernel without it is another one
        gates = (gated, False, False, gated, False)
        self._activations = [_activation(slope, gate) for slope, gate in zip(self._slopes, gates, strict=True)]
        if self._rest is not None:
            self._activations[3] = "leaky_relu"
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
                slope=1.0 if number is None else (self._slopes[3], self._rest) if number == 3 else self._slopes[number],
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
        arguments |= {"slope_rest": self._rest, "FIRST": first is None, "MIDDLE": middle, "LAST": last}
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
