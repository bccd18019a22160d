"""What is particular to the fused block on Triton: its ways agree, its halo is right, its cost model is sane."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sparsecodec._triton import _depth_conv_cost as cost
from sparsecodec.ops import bind, use_backend, why_unavailable
from sparsecodec.ops.depth_conv_block import DEPTH_CONV_BLOCK
from sparsecodec.testing import judge
from sparsecodec.testing.compare import island, poisoned_allocations
from sparsecodec.testing.depth_conv_block import CASES

H200, SHARED = cost.Gpu(), 227 * 1024
AOT = Path(__file__).parents[2] / "bench" / "results" / "aot.json"

interpreted = [
    pytest.mark.skipif(why_unavailable("triton") is not None, reason=str(why_unavailable("triton"))),
    pytest.mark.skipif(torch.cuda.is_available(), reason="tensors here are on the CPU, for the interpreter"),
]


def in_interpreter(test):
    for mark in interpreted:
        test = mark(test)
    return test


def _case(case_id: str):
    return next(case for case in CASES if case.id == case_id)


def _run(arguments: dict, kind: str | None, x: torch.Tensor | None = None) -> torch.Tensor:
    """The block by one way, on the given input or its own."""
    from sparsecodec._triton.depth_conv_block import DepthConvBlockPlan

    constants = {name: island(v) if isinstance(v, torch.Tensor) else v for name, v in arguments.items()}
    own, scale = constants.pop("x"), constants.pop("scale")
    x = own if x is None else x
    with torch.no_grad(), poisoned_allocations():
        return DepthConvBlockPlan(**constants, dtype=x.dtype, kind=kind)(x, scale)


@in_interpreter
@pytest.mark.parametrize("case_id", ["tile-and-one", "tile-up-free", "tile-adaptor"])
@pytest.mark.parametrize("kind", ["one", "two", "three", "four"])
def test_every_way_matches_the_reference(case_id, kind):
    case = _case(case_id)
    verdict = judge(case, (_run(case.arguments(torch.bfloat16), kind),), torch.bfloat16)
    assert verdict.complaint is None, verdict.complaint


@in_interpreter
@pytest.mark.parametrize("kind", ["one", "two", "three", "four"])
def test_zeros_surround_the_activated_features(kind):
    """With b1 = 1 and x = 0 a corner sees four taps, not nine: the ring outside the picture is 0, not act(b1)."""
    one, none = torch.ones(1, 1), torch.zeros(1, 1)
    arguments = dict.fromkeys(_case("identity").arguments(torch.float32)) | {
        "x": torch.zeros(1, 1, 3, 3, dtype=torch.float16), "w1": none, "b1": torch.ones(1),
        "dw": torch.ones(1, 1, 3, 3), "w2": one, "w3": none, "w4": none, "slopes": (1.0,) * 5, "chunks": 1,
        "gated": False, "interleaved": False, "shortcut": False,
    }  # fmt: skip
    assert _run(arguments, kind).flatten().tolist() == [4, 6, 4, 6, 9, 6, 4, 6, 4]


@in_interpreter
@pytest.mark.parametrize("kind", ["one", "three"])
def test_a_pixel_reaches_its_neighbours_and_no_further(kind):
    """NaN in one pixel, beside the seam of two tiles, spoils three by three pixels."""
    arguments = _case("tile-and-one").arguments(torch.bfloat16)
    x = arguments["x"].clone(memory_format=torch.preserve_format)
    y0, x0 = 7, 16
    x[:, :, y0, x0] = float("nan")
    spoilt = _run(arguments, kind, x).isnan()
    expected = torch.zeros(spoilt.shape[2:], dtype=torch.bool)
    expected[y0 - 1 : y0 + 2, x0 - 1 : x0 + 2] = True
    assert torch.equal(spoilt.all(dim=1)[0], expected)
    assert torch.equal(spoilt.any(dim=1)[0], expected)


@in_interpreter
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # inf - inf
def test_untouched_channels_are_the_skip_even_beside_infinite_features():
    arguments = _case("free").arguments(torch.bfloat16)
    arguments["b1"] = torch.full_like(arguments["b1"], float("inf"))
    y = _run(arguments, "one")
    touched = torch.zeros(y.shape[1], dtype=torch.bool)
    touched[arguments["out2_index"].long()] = True
    touched[arguments["out4_index"].long()] = True
    assert torch.equal(y[:, ~touched], arguments["x"][:, ~touched])
    assert not y[:, touched].isfinite().all()


@in_interpreter
def test_the_plan_says_what_it_launches_and_refuses_to_write_over_its_input():
    arguments = _case("tile-exact").arguments(torch.bfloat16)
    with use_backend("triton"):
        run = bind(DEPTH_CONV_BLOCK, **arguments).run
    assert run.launches == 1 and run.note.startswith("1 launch, tiles of 8x16: ")
    with pytest.raises(ValueError, match="out: is x"):
        run(arguments["x"], out=arguments["x"])
    run(arguments["x"])
    assert run.launches == 1


def _widths(c: int, hidden: int = 0, chunks: int = 1, **options) -> cost.Widths:
    same = dict.fromkeys(("c", "co", "k1", "c1", "c2", "k3", "c4"), c)
    return cost.Widths(**(same | {"hidden": hidden or 4 * c, "chunks": chunks} | options))


@pytest.mark.parametrize("c", [64, 128])
def test_narrow_blocks_take_one_launch(c):
    ways = cost.candidates(_widths(c), 1, 135, 240, 2, H200, SHARED)
    assert ways[0].kind == "one" and ways[0].count == 1
    assert ways[0].bytes == 2 * 2 * 135 * 240 * c  # the input and the result


@pytest.mark.parametrize("c", [200, 256])
def test_wide_blocks_take_two(c):
    """The ring around a tile costs w1 once more, which a wide block pays in arithmetic."""
    ways = cost.candidates(_widths(c, 2 * c, chunks=2), 1, 135, 240, 2, H200, SHARED)
    one, two = (next(way for way in ways if way.kind == kind) for kind in ("one", "two"))
    assert ways[0] is two and two.count == 2
    assert one.flops > two.flops and one.bytes < two.bytes


@pytest.mark.parametrize("itemsize", [2, 4])
def test_every_width_has_a_way_of_tiles_that_were_compiled(itemsize):
    compiled = [*cost.WHOLE_TILES, *cost.HOPPER_TILES, *cost.HALF_TILES[itemsize]]
    for c in (1, 7, 8, 33, 64, 200, 384, 385, 1152):
        for chunks in (1, 2, 4):
            for height, width in ((1, 1), (17, 30), (270, 480)):
                ways = cost.candidates(_widths(c, chunks=chunks), 1, height, width, itemsize, H200, SHARED)
                assert all(way.tile | {"BLOCK_H": 16} in [t | {"BLOCK_H": 16} for t in compiled] for way in ways)
                assert {"three", "four"} <= {way.kind for way in ways}
                assert [way.seconds for way in ways] == sorted(way.seconds for way in ways)
                assert ("two" in {way.kind for way in ways}) == (itemsize == 2 and c <= (384 if chunks <= 2 else 128))


def test_one_generation_has_tiles_of_its_own():
    both, hopper = (cost.whole_tiles(256, 2, arch) for arch in (80, 90))
    assert hopper[: len(both)] == both and hopper[len(both) :] == list(cost.HOPPER_TILES)


def test_small_memory_rules_out_what_does_not_fit():
    assert {way.kind for way in cost.candidates(_widths(256), 1, 64, 96, 2, H200, 40 * 1024)} == {"three", "four"}


def test_without_vectors_the_feed_forward_half_is_apart():
    ways = cost.candidates(_widths(63), 1, 64, 96, 2, H200, SHARED, vectors=False)
    assert {way.kind for way in ways} == {"three", "four"}


def test_small_maps_are_launch_bound_and_large_float32_maps_are_not():
    small = cost.candidates(_widths(32), 1, 8, 12, 4, H200, SHARED)
    assert small[0].kind == "three" and small[0].count == 3
    large = cost.candidates(_widths(384, co=576, adaptor=True), 1, 32, 48, 4, H200, SHARED)
    assert large[0].kind == "four" and large[0].count == 5  # the adaptor's among them


def test_tiles_cover_the_picture():
    tile = cost.WHOLE_TILES[1]
    assert cost.tiles_of(2, 8, 16, tile) == (1, 1, 2)
    assert cost.tiles_of(1, 9, 17, tile) == (2, 2, 4)
    assert cost.halo(tile) == 10 * 18


def test_shared_memory_is_not_underestimated():
    """Against what the compiler took: the estimate decides whether a GPU with less memory is given a tile."""
    rows = [row for row in json.loads(AOT.read_text()) if row["kernel"] == "_depth_conv_block_fwd_kernel"]
    rows = [row for row in rows if " one " in row["config"] or " two " in row["config"]]
    assert rows
    for row in rows:
        held, variant = re.search(r" (\d+) (?:one|two) ([a-z ]+), tile", row["config"]).groups()
        chunks = {"uf": 4, "rt": 2, "gain": 2, "up": 2, "fm": 2}.get(variant.split()[-1], 1)
        tiles = cost.whole_tiles(int(held), chunks, int(row["arch"].removeprefix("sm_")))
        tile = next(tile for tile in tiles if f"tile {tile['BLOCK_P']}x" in row["config"])
        assert row["shared_bytes"] <= max(cost.shared_bytes(tile, chunks), 64 * 1024), row


class Allocated(TorchDispatchMode):
    """Bytes of all uninitialised memory that is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if "empty" in str(function):
            self.bytes += result.numel() * result.element_size()
        return result


@in_interpreter
@pytest.mark.parametrize("adaptor", [False, True], ids=["plain", "adaptor"])
def test_scratch_is_that_of_four_launches(adaptor, monkeypatch):
    """And not less than that of other ways, whose maps are in tiles; nothing runs."""
    from sparsecodec._triton import depth_conv_block, pointwise

    launched = type("Kernel", (), {"__getitem__": lambda self, grid: lambda *args, **kwargs: None})()
    monkeypatch.setattr(depth_conv_block, "_depth_conv_block_fwd_kernel", launched)
    monkeypatch.setattr(pointwise, "_pointwise_fwd_kernel", launched)
    c, wide = 128, 192 if adaptor else 128
    shapes = {"w1": (c, c), "dw": (c, 1, 3, 3), "w2": (wide, c), "w3": (4 * wide, wide), "w4": (wide, 4 * wide)}
    constants = {name: torch.zeros(shape) for name, shape in shapes.items()}
    constants |= {name: None for name in ("b1", "db", "b2", "b3", "b4", "adaptor_bias")}
    constants |= {name: None for name in ("in1_index", "out2_index", "in3_index", "out4_index")}
    constants |= {"slopes": [0.01] * 5, "adaptor": torch.zeros(wide, c) if adaptor else None, "gated": False}
    constants |= {"chunks": 1, "interleaved": False, "shortcut": False}
    x, out = (torch.zeros(1, n, 270, 480).to(memory_format=torch.channels_last) for n in (c, wide))
    counted = DEPTH_CONV_BLOCK.scratch(x=x, **constants)
    took = {}
    for kind in ("four", "three"):
        plan = depth_conv_block.DepthConvBlockPlan(**constants, dtype=torch.float32, kind=kind)
        plan(x, out=out)  # packs
        with Allocated() as allocated:
            plan(x, out=out)
        took[kind] = allocated.bytes
    assert counted <= took["four"] <= 1.01 * counted  # each program of the depthwise launch has a tile besides
    assert 0 < took["three"] <= counted
