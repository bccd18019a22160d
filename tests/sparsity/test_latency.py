"""Latency tables: what an entry is, that nothing is measured twice, and plans with a target in milliseconds."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from sparsecodec._compat import import_compressai
from sparsecodec.cli import latency as compiled
from sparsecodec.cli.latency import CompiledTimer
from sparsecodec.errors import UsageError
from sparsecodec.models import create
from sparsecodec.sparsity import ChannelGraph, ChannelMasks, ScatterConv2d, compact, count, trace_model
from sparsecodec.sparsity.latency import LatencyTable, blocks_of, latency_cost, timed_by, timer_for
from sparsecodec.sparsity.ranking import rank_channels
from sparsecodec.sparsity.search import search, uniform


class StairTimer:
    """Milliseconds of a device whose kernels work on tiles of 8 channels."""

    def __init__(self, device: str = "a device with tiles") -> None:
        self.device = device
        self.sessions: list[list[str]] = []

    def __call__(self, blocks) -> list[float]:
        self.sessions.append([block.key for block in blocks])
        return [self.ms(block) for block in blocks]

    @staticmethod
    def ms(block) -> float:
        convs = [module for module in block.module.modules() if isinstance(module, nn.Conv2d)]
        tiles = sum(-(-conv.in_channels // 8) * -(-conv.out_channels // 8) * conv.kernel_size[0] ** 2 for conv in convs)
        return 0.01 + tiles * block.shape[2] * block.shape[3] / 1e4


def _shapes(evc) -> dict[str, tuple[int, int, int, int]]:
    return {"hyper_enc": (1, 96, 8, 8), "dec": (1, 96, 4, 6)}


def test_blocks_follow_each_other_and_make_the_transform(evc) -> None:
    graph = trace_model(evc.model, ["dec"])
    small = compact(evc.model, ChannelMasks.random(graph, 0.5, 0, 8), graph)
    for model in (evc.model, small):
        blocks = blocks_of(model, {"dec": (1, 96, 4, 6)})
        x = expected = torch.rand(1, 96, 4, 6)
        for block in blocks:
            assert tuple(x.shape) == block.shape and block.transform == "dec"
            x = block.module(x)
        torch.testing.assert_close(x, model.dec(expected))
        assert len(blocks) == 8


def test_what_is_fused_is_timed_together(evc) -> None:
    assert [len(list(b.module.children())) for b in blocks_of(evc.model, {"hyper_enc": (1, 96, 8, 8)})][1] == 2
    names = [type(block.module).__name__ for block in blocks_of(evc.model, {"hyper_enc": (1, 96, 8, 8)})]
    assert names == ["PriorBlock", "Sequential", "Conv2d"]  # the activation goes with the convolution before it


def test_a_transform_that_is_no_sequence_is_one_block(case) -> None:
    block = blocks_of(case.model, {"first.0": (1, 3, 9, 11)})
    assert [b.module for b in block] == [case.model.first[0]]


def test_entries_tell_apart_what_takes_another_time(evc) -> None:
    graph = trace_model(evc.model, ["dec"])
    narrow = compact(evc.model, ChannelMasks({"dec.2.block.1.conv.0": torch.arange(256) < 128}), graph)
    free = compact(evc.model, ChannelMasks({"branch:dec.2.block.1.conv.2": torch.arange(64) < 32}), graph)
    keys = [[block.key for block in blocks_of(model, _shapes(evc))] for model in (evc.model, narrow, free)]
    larger = [block.key for block in blocks_of(evc.model, {"dec": (1, 96, 8, 6)})]
    assert len({key[5] for key in keys}) == 3
    assert all(keys[0][i] == keys[1][i] == keys[2][i] for i in range(len(keys[0])) if i != 5)
    assert not set(larger) & set(keys[0])


def test_all_of_a_layer_that_time_depends_on_is_in_its_entry() -> None:
    layers = [
        nn.Conv2d(8, 8, 3, padding=1),
        nn.Conv2d(8, 8, 3, padding=1, stride=2),
        nn.Conv2d(8, 8, 5, padding=2),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 6, 3, padding=1),
        nn.ConvTranspose2d(8, 8, 3, padding=1),
    ]
    model = nn.ModuleDict({"a": nn.Sequential()})
    keys = set()
    for layer in layers:
        model["a"] = nn.Sequential(layer)
        keys |= {block.key for block in blocks_of(model, {"a": (1, 8, 6, 6)})}
    assert len(keys) == len(layers)


def test_channels_that_are_scattered_into_another_width_are_another_entry() -> None:
    conv = nn.Conv2d(4, 4, 1)
    keys = set()
    for width in (6, 8):
        model = nn.ModuleDict({"a": nn.Sequential(ScatterConv2d(conv, torch.arange(4), width))})
        keys |= {block.key for block in blocks_of(model, {"a": (1, 4, 5, 5)})}
    assert len(keys) == 2


def test_nothing_is_measured_twice_and_all_that_is_missing_at_once(evc, tmp_path) -> None:
    timer = StairTimer()
    table = LatencyTable(timer, tmp_path / "table.json")
    blocks = blocks_of(evc.model, _shapes(evc))
    total = table.ms(blocks)
    assert total == pytest.approx(sum(map(timer.ms, blocks)))
    assert table.ms(blocks) == total and len(timer.sessions) == 1
    assert sorted(timer.sessions[0]) == sorted({block.key for block in blocks})

    later = StairTimer()
    assert LatencyTable(later, tmp_path / "table.json").ms(blocks) == total
    assert not later.sessions
    assert [path.name for path in tmp_path.iterdir()] == ["table.json"]


def test_equal_blocks_share_an_entry() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3)))})
    timer = StairTimer()
    blocks = blocks_of(model, {"a": (1, 8, 5, 5)})
    assert LatencyTable(timer).ms(blocks) == pytest.approx(3 * timer.ms(blocks[0]))
    assert len(timer.sessions[0]) == 1


def test_a_table_of_another_device_is_refused(evc, tmp_path) -> None:
    LatencyTable(StairTimer("a fast one"), tmp_path / "table.json").ms(blocks_of(evc.model, _shapes(evc)))
    with pytest.raises(UsageError, match="was measured on a fast one, not on a slow one"):
        LatencyTable(StairTimer("a slow one"), tmp_path / "table.json")


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 7}', '{"format": 1, "device": "d", "ms": [1]}'])
def test_a_file_that_is_no_table_is_refused(tmp_path, text: str) -> None:
    (tmp_path / "table.json").write_text(text)
    with pytest.raises(UsageError, match=r"table\.json cannot be read"):
        LatencyTable(StairTimer("d"), tmp_path / "table.json")


def test_a_shape_that_the_transform_does_not_take_is_refused(evc) -> None:
    with pytest.raises(UsageError, match=r"dec does not take an input \(1, 95, 4, 6\)"):
        blocks_of(evc.model, {"dec": (1, 95, 4, 6)})
    with pytest.raises(UsageError, match="dec has 2 inputs: only transforms of one input can be timed"):
        blocks_of(evc.model, {"dec": ((1, 96, 4, 6), (1, 96, 4, 6))})


# --- plans in milliseconds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", [0.3, 0.6])
def test_a_plan_meets_the_measured_time(case, reduction: float, tmp_path) -> None:
    timer = StairTimer()
    cost = latency_cost(case.model, case.graph, LatencyTable(timer, tmp_path / "t.json"), case.shapes)
    measured = case.measured()
    for rule in ("slope", "threshold"):
        plan = search(case.model, case.graph, case.ranking, measured, case.loss, cost, reduction, rule=rule)
        assert (plan.target, plan.device) == ("ms", "a device with tiles")
        small = compact(case.model, plan.masks(case.graph), case.graph)
        left, dense = (sum(map(timer.ms, blocks_of(model, case.shapes))) for model in (small, case.model))
        assert plan.reached == pytest.approx(1 - left / dense)
        assert abs(plan.missed) < 0.1
    again = LatencyTable(StairTimer(), tmp_path / "t.json")
    replayed = latency_cost(case.model, case.graph, again, case.shapes)
    assert search(case.model, case.graph, case.ranking, measured, case.loss, replayed, reduction, rule=rule) == plan
    assert not again.timer.sessions


@pytest.mark.parametrize("path", ["", "inner.part"])
def test_any_path_of_a_transform_can_be_timed(path: str) -> None:
    torch.manual_seed(0)
    part = nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 3, 1))
    model = nn.ModuleDict({"inner": nn.ModuleDict({"part": part})}) if path else part
    graph = trace_model(model, [path]) if path else ChannelGraph.trace(model)
    timer = StairTimer()
    cost = latency_cost(model, graph, LatencyTable(timer), {path: (1, 3, 20, 20)})
    plan = uniform(graph, rank_channels(model, graph, "l2"), cost, 0.4, round_to=8)
    small = compact(model, plan.masks(graph), graph)
    assert cost.of(plan.masks(graph)) == sum(map(timer.ms, blocks_of(small, {path: (1, 3, 20, 20)})))
    assert list(plan.widths.values()) == [(8, 16)]


def test_time_is_not_macs(case) -> None:
    """A device that waits for one layer alone: only what makes that layer narrower counts."""

    class Waiting(StairTimer):
        @staticmethod
        def ms(block) -> float:
            return 1.0 * sum(m.out_channels for m in block.module.modules() if isinstance(m, nn.Conv2d))

    cost = latency_cost(case.model, case.graph, LatencyTable(Waiting()), {"second": case.shapes["second"]})
    plan = uniform(case.graph, case.ranking, cost, 0.5, round_to=1)
    kept, width = plan.widths["second.0"]
    assert plan.reached == pytest.approx(1 - (kept + 3) / (width + 3)) and abs(plan.missed) < 0.02
    assert 1 - count(case.model, case.shapes).macs != plan.reached


# --- the timer of the command line -------------------------------------------------------------------------------


def test_a_timer_has_to_be_there(evc) -> None:
    with pytest.raises(UsageError, match="a target in ms needs a timer"):
        timer_for(evc.model, torch.device("cpu"))
    with timed_by(CompiledTimer):
        assert isinstance(timer_for(evc.model, torch.device("cpu")), CompiledTimer)
    with pytest.raises(UsageError, match="a target in ms needs a timer"):
        timer_for(evc.model, torch.device("cpu"))


def test_compiled_blocks_are_timed_in_the_precision_of_their_transform(evc, monkeypatch) -> None:
    made = []

    class Spy(compiled.CompiledTransform):
        def __init__(self, module, name, dtype, **options) -> None:
            made.append((name, dtype))
            super().__init__(module, name, dtype, **options)

    monkeypatch.setattr(compiled, "CompiledTransform", Spy)
    graph = trace_model(evc.model, ["dec"])
    small = compact(evc.model, ChannelMasks.random(graph, 0.5, 0, 8), graph)
    blocks = blocks_of(small, {"hyper_dec": (1, 96, 1, 1), "dec": (1, 96, 4, 4)})
    before = {name: value.clone() for name, value in small.state_dict().items()}
    timer = CompiledTimer(small, "cpu", torch.bfloat16, rounds=2)
    times = timer([blocks[0], blocks[-1], blocks[4]])
    assert made == [("hyper_dec", torch.float32), ("dec", torch.bfloat16), ("dec", torch.bfloat16)]
    assert len(times) == 3 and all(0 < ms < 1000 for ms in times)
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())


def test_the_name_of_the_device_holds_what_times_depend_on(evc) -> None:
    name = CompiledTimer(evc.model, "cpu", torch.bfloat16).device
    assert "bfloat16" in name and f"{torch.get_num_threads()} threads" in name
    assert name != CompiledTimer(evc.model, "cpu", torch.float32).device


def test_a_model_that_cannot_be_compiled_cannot_be_timed(case) -> None:
    with pytest.raises(UsageError, match="TwoParts is of no family"):
        CompiledTimer(case.model, "cpu")


def test_a_video_codec_is_pointed_to_what_can_be_counted() -> None:
    model = create("dcvc-rt-tiny")
    for part, name in ((model, "VideoCodec"), (model.intra, "DCVCRTImage"), (model.inter, "DCVCRTVideo")):
        with pytest.raises(UsageError, match=rf'{name} is of video coding, .*\(needs target = "macs" or "params"\)'):
            CompiledTimer(part, "cpu")


def test_a_context_model_is_timed_and_keeps_its_weight() -> None:
    """CompressAI's masked convolution replaces its weight when it runs, and shapes are inferred on fake tensors."""
    model = import_compressai().models.JointAutoregressiveHierarchicalPriors(12, 16).eval()
    shape = {"context_prediction": (1, model.context_prediction.in_channels, 4, 4)}
    before = model.context_prediction.weight.clone()
    (ms,) = CompiledTimer(model, "cpu", rounds=2)(blocks_of(model, shape))
    assert 0 < ms < 1000
    assert torch.equal(model.context_prediction.weight, before)


def test_tables_are_json_with_their_device(evc, tmp_path) -> None:
    LatencyTable(StairTimer(), tmp_path / "t.json").ms(blocks_of(evc.model, {"dec": (1, 96, 4, 6)}))
    data = json.loads((tmp_path / "t.json").read_text())
    assert data["device"] == "a device with tiles" and len(data["ms"]) == 8
    assert all(key.startswith("dec ") and ms > 0 for key, ms in data["ms"].items())
