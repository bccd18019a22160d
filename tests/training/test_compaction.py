"""What a method cuts must be what it masked, or the run ends."""

from __future__ import annotations

import re

import pytest
import torch

from sparsecodec.errors import GraphError
from sparsecodec.models import create
from sparsecodec.sparsity import ChannelMasks, compact, trace_model
from sparsecodec.training import compaction
from sparsecodec.training.compaction import compacted


@pytest.fixture
def cut():
    """A codec, its graph, masks and pictures."""
    torch.manual_seed(0)
    model = create("evc-nano")
    graph = trace_model(model, ["dec"])
    return model, ChannelMasks.random(graph, 0.1, seed=0), graph, torch.rand(1, 3, 64, 64)


def test_the_compact_codec_is_the_masked_one(cut, capsys):
    before = {name: value.clone() for name, value in cut[0].state_dict().items()}
    small = compacted(*cut)
    assert small.compact_config["transforms"] == ["dec"] and small.training
    assert all(torch.equal(value, before[name]) for name, value in cut[0].state_dict().items())
    errors = [float(value) for value in re.findall(r"by (\S+e-\d+|0.0e\+00)", capsys.readouterr().err)]
    assert len(errors) == 2 and max(errors) < 1e-5


def test_a_codec_that_is_cut_otherwise_is_refused(cut, monkeypatch):
    def wrong(model, masks, graph):
        return compact(model, ChannelMasks.random(graph, 0.1, seed=1), graph)

    monkeypatch.setattr(compaction, "compact", wrong)
    with pytest.raises(GraphError, match=r"pictures differ by \d.*, rates by .* reads EVC wrongly"):
        compacted(*cut)


def test_nothing_is_proved_of_a_codec_that_overflows(cut, capsys):
    model, *others = cut
    with torch.no_grad():
        next(model.dec.parameters()).fill_(float("nan"))
    assert compacted(model, *others).compact_config and "pictures differ by nan" in capsys.readouterr().err
