"""Scripts that treat a compiled image codec as the model that it was."""

from __future__ import annotations

import pytest
import torch

from sparsecodec.errors import UsageError
from sparsecodec.runtime import CompiledCodec

from .conftest import Pair, pair_of


@pytest.fixture(params=["evc-nano", "mbt2018-mean", "mbt2018"])
def each(request: pytest.FixtureRequest) -> Pair:
    return pair_of(request.param, "dense", torch.float32)


@pytest.fixture
def codec(each: Pair) -> CompiledCodec:
    return each.compiled


def test_what_a_script_does_first_changes_nothing(codec, photo):
    blob = codec.encode(photo)
    codec.update(force=True)
    with torch.no_grad():
        again = codec.eval().to("cpu").to(torch.device("cpu"), torch.float16).to(photo).half().float().train(False)
    assert again is codec and codec.encode(photo) == blob
    assert next(codec.parameters()).device == torch.device("cpu")
    assert [p.shape for p in codec.parameters()] == [p.shape for p in codec._model.parameters()]


def test_forward_is_the_models_own(each, photo):
    x = photo[:, :, :64, :64]
    arguments = (x, 0.7) if each.name == "evc-nano" else (x,)
    found, expected = each.compiled(*arguments), each.original(*arguments)
    assert found.keys() == expected.keys()
    assert torch.equal(found["x_hat"], expected["x_hat"])
    assert not found["x_hat"].is_inference()


def test_what_would_change_the_weights_is_refused(codec):
    with pytest.raises(UsageError, match=r"compiled for cpu \(needs compile_codec\(model, 'cuda'\) for cuda\)"):
        codec.to("cuda")
    with pytest.raises(UsageError, match=r"compiled for cpu \(needs compile_codec\(model, 'cuda:1'\)"):
        codec.to(device=torch.device("cuda:1"))
    with pytest.raises(UsageError, match="cannot be trained"):
        codec.train()
    with pytest.raises(UsageError, match="is compiled with its weights"):
        codec.load_state_dict({})
