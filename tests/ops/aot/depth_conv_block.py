"""Launches of `depth_conv_block`: every tile in several variants."""

from __future__ import annotations

import torch

from sparsecodec._triton import _depth_conv_cost as cost
from sparsecodec._triton import depth_conv_block
from sparsecodec._triton.depth_conv_block import DepthConvBlockPlan

EVC = {"slopes": (0.01, 0.01, 0.01, 0.0, 0.0)}
RT = {"slopes": (1.0,) * 5, "gated": True}
UP = RT | {"chunks": 2, "shortcut": True, "scaled": True}
# free: with channels gathered and scattered; odd: widths that allow no vector loads.
VARIANTS = {
    "evc": EVC,
    "rt": RT | {"chunks": 2},
    "uf": RT | {"chunks": 4, "interleaved": True},
    "gain": RT | {"chunks": 2, "scaled": True},
    "up": UP,
    "adaptor": EVC | {"adaptor": True},
    "free": EVC | {"free": True},
    "free up": UP | {"free": True},
    "odd": EVC | {"odd": True, "adaptor": True},
    "fm": {"slopes": (0.01, 1.0, 1.0, 0.1, 1.0, 0.01), "chunks": 2},
}
# Of launches with the feed-forward half, and without it. float16 takes the registers that bfloat16 takes.
WHOLE = {torch.bfloat16: ("evc", "rt", "uf", "gain", "up", "adaptor", "free", "free up", "fm"), torch.float16: ("rt",)}
HALF = {torch.bfloat16: ("evc", "adaptor", "free", "odd"), torch.float32: ("evc", "rt", "free", "odd", "up", "free up")}
QUICK = {"float32 three free", "bfloat16 128 one rt", "bfloat16 64 one free up"}  # the last has every barrier


def _launch(kind, dtype, c, slopes, free=False, odd=False, adaptor=False, scaled=False, chunks=1, **options) -> None:
    width = c - odd
    x = torch.empty((1, width, 32, 48), dtype=dtype).to(memory_format=torch.channels_last)
    index = torch.arange(width - free, dtype=torch.int32) if free else None
    kept = width - free
    shapes = {"w1": (c, kept), "w2": (kept, c), "w3": (chunks * c, kept), "w4": (kept, c), "dw": (c, 1, 3, 3)}
    arguments = {name: torch.zeros(shape) for name, shape in shapes.items()}
    arguments |= dict.fromkeys(("b1", "b2", "b3", "b4", "db", "adaptor_bias"))
    arguments |= dict.fromkeys(("in1_index", "out2_index", "in3_index", "out4_index"), index)
    arguments |= {"adaptor": torch.zeros(width, width) if adaptor else None, "chunks": chunks}
    arguments |= {"gated": False, "interleaved": False, "shortcut": False} | options
    plan = DepthConvBlockPlan(**arguments, slopes=slopes, dtype=dtype, kind=kind)
    first = torch.empty((1, c, 32, 48), dtype=dtype).to(memory_format=torch.channels_last)
    plan._layer = lambda name: lambda *args, **kwargs: first  # launches of another kernel
    plan(x, torch.ones(width) if scaled else None)


def compiles_for(arguments, architecture):
    """Some tiles are for one generation."""
    return architecture >= 90 or not any(arguments.items() >= tile.items() for tile in cost.HOPPER_TILES)


def barriers(arguments):
    """One a task, one behind each step that another one follows, in LAST one behind what reads u, and one behind each
    store to v where addresses are many.
    """
    after = arguments["FIRST"] + arguments["MIDDLE"]
    if not arguments["LAST"]:
        return 1 + after
    dense = arguments["VEC"] == 8
    gathered = arguments["index3_ptr"] is not None or not dense
    names = ("column4_ptr", "scale_ptr")
    scattered = not dense or arguments["SHORTCUT"] or any(arguments[name] is not None for name in names)
    return 1 + after + 2 + gathered + scattered


def launches(quick):
    found = []
    for dtype, variants in HALF.items():
        found += [(dtype, kind, 128, variant, "") for kind in ("three", "four") for variant in variants]
    for dtype, variants in WHOLE.items():
        for held in sorted({tile["BLOCK_N"] + tile["BLOCK_M"] for tile in cost.WHOLE_TILES}):
            found += [(dtype, kind, held, variant, f"{held} ") for kind in ("one", "two") for variant in variants]
    for dtype, kind, width, variant, held in found:
        name = f"{str(dtype).removeprefix('torch.')} {held}{kind} {variant}"
        if not quick or name in QUICK:
            options = VARIANTS[variant]
            if held and not cost.whole_tiles(width, options.get("chunks", 1), 90):
                continue
            if kind == "one" and width > 256:
                continue
            yield depth_conv_block, name, lambda k=kind, d=dtype, w=width, o=options: _launch(k, d, w, **o)
