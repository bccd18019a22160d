"""No routine mixes devices: a GPU is played by torch's meta device, whose tensors have no values."""

from __future__ import annotations

import pytest
import torch

from sparsecodec._compat import import_compressai
from sparsecodec.models import create
from sparsecodec.nn.routine import Coding, Routine
from sparsecodec.ops import evc_scale_thresholds, use_backend
from sparsecodec.runtime import codec as codec_module
from sparsecodec.runtime import lowering
from sparsecodec.runtime.adapters import compressai as compressai_adapter
from sparsecodec.runtime.adapters import evc as evc_adapter

DEVICE = torch.device("meta")


@pytest.fixture
def valueless(monkeypatch):
    """Nothing reads values: neither to name a model nor to recognise a layer."""
    evc_scale_thresholds()
    monkeypatch.setattr(codec_module, "model_hash", lambda model: bytes(32))
    monkeypatch.setattr(codec_module, "CudaGraphs", lambda device: None)
    monkeypatch.setattr(lowering, "_divides_by_root", lambda *_, **__: True)
    with use_backend("reference"), torch.no_grad():
        yield


def finish(routine: Routine, decoding: bool) -> tuple[int, torch.Tensor | None]:
    """Runs a routine to its end with symbols of any value: the number of its requests and what it returns."""
    requests, answer = 0, None
    while True:
        try:
            request = routine.send(answer)
        except StopIteration as stop:
            return requests, stop.value
        requests += 1
        assert isinstance(request, Coding)
        assert request.indexes.device == DEVICE and request.indexes.dtype == torch.int16
        assert (request.symbols is None) == decoding
        if decoding:
            answer = torch.empty(request.indexes.shape, dtype=torch.int32, device=DEVICE)
        else:
            assert request.symbols.device == DEVICE and request.symbols.shape == request.indexes.shape
            answer = None


def test_evc(valueless, monkeypatch):
    model = create("evc-tiny")
    tables = model.tables()
    monkeypatch.setattr(evc_adapter, "factorized_tables", lambda *_: tables[1])
    monkeypatch.setattr(type(model), "tables", lambda _: tables)
    codec = evc_adapter.EVCCodec(model, DEVICE, torch.float16, False)  # values that are read once are the CPU's
    coder = codec._coder
    # The reference reads values, to check its thresholds.
    coder._index["even"] = lambda scales: torch.empty_like(scales[:, : scales.shape[1] // 2], dtype=torch.int16)
    gain = codec._q_basic * 1.5
    x = torch.empty(1, 3, 128, 64, device=DEVICE)
    assert finish(codec._analysis(x, gain, coder, True), False)[0] == 3
    requests, x_hat = finish(
        codec._synthesis(torch.empty(1, 96, 2, 1, dtype=torch.int32, device=DEVICE), gain, coder, 100, 50), True
    )
    assert (requests, x_hat.shape, x_hat.dtype, x_hat.device) == (2, (1, 3, 100, 50), torch.float32, DEVICE)


@pytest.mark.parametrize("networks", ["_transforms", "_model"])
def test_mean_scale_hyperprior(valueless, monkeypatch, networks):
    models = import_compressai().models
    monkeypatch.setattr(compressai_adapter, "coder_tables", lambda module: None)
    monkeypatch.setattr(
        compressai_adapter, "scale_table_thresholds", lambda table, bound: torch.empty(63, dtype=torch.float32)
    )
    monkeypatch.setattr(compressai_adapter, "entropy_parameters", lambda s, t: torch.empty_like(s, dtype=torch.int16))
    model = models.MeanScaleHyperprior(32, 48).eval().to(DEVICE)
    for part in (model.entropy_bottleneck, model.gaussian_conditional):
        part._offset = torch.zeros(1, dtype=torch.int32)
    monkeypatch.setattr(compressai_adapter, "float", lambda value: 0.11, raising=False)  # of the least scale
    codec = compressai_adapter.HyperpriorCodec(model, DEVICE, torch.float16, False)
    lookup = codec._transforms.__getitem__ if networks == "_transforms" else codec._model.get_submodule
    assert finish(codec._analysis(torch.empty(2, 3, 64, 64, device=DEVICE), lookup), False)[0] == 2
    z_symbols = torch.empty(2, 32, 1, 1, dtype=torch.int32, device=DEVICE)
    requests, x_hat = finish(codec._synthesis(z_symbols, 64, 64, lookup), True)
    assert (requests, x_hat.shape, x_hat.device) == (1, (2, 3, 64, 64), DEVICE)


def test_mixed_devices_are_seen(valueless):
    with pytest.raises(RuntimeError, match="not on the expected device"):
        torch.empty(3, device=DEVICE) + torch.empty(3)
