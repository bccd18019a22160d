"""Portable streams whose coder runs where the networks do. CUDA kernels run on CPU threads, graphs are recorded."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from sparsecodec import _cuda
from sparsecodec.entropy import lanes_cuda
from sparsecodec.errors import BitstreamError
from sparsecodec.ops import use_backend
from sparsecodec.runtime import CompiledCodec, compile_codec
from sparsecodec.runtime.adapters import portable, portable_video
from sparsecodec.runtime.executor import Executor

from ..toy_video import moving
from .conftest import portable_codec, portable_model
from .recorded_graphs import RecordedGraphs, launching
from .test_portable_dcvc import DCVC_2021
from .test_portable_rt import RT

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SIZE = (64, 128)


@pytest.fixture
def on_device(emulated, monkeypatch) -> list[torch.device]:
    """All payloads are decoded on the device; each asks once."""
    asked = []

    def decodes_on(device: torch.device) -> bool:
        asked.append(device)
        return True

    monkeypatch.setattr(lanes_cuda, "why_unavailable", lambda backend: None)
    monkeypatch.setattr(_cuda, "_launch", launching(_cuda._launch))
    for adapter in (portable, portable_video):
        monkeypatch.setattr(adapter, "decodes_on", decodes_on)
    return asked


@pytest.fixture(params=["evc-float", "mbt2018-mean", "bmshj2018-factorized", "mbt2018-mean-vbr"])
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def blobs(family: str, photo: Tensor) -> list[bytes]:
    """Two pictures; of a codec with a gain per rate at the ends of its rates."""
    encode = portable_codec(family).encode
    qualities = (0, 100) if family.endswith("-vbr") else (None, None)
    tops = zip((0, 64), qualities, strict=True)
    return [encode(photo[:, :, top : top + SIZE[0], : SIZE[1]], quality) for top, quality in tops]


@pytest.fixture
def captured(family: str) -> Iterator[CompiledCodec]:
    """A codec as it is on a GPU; recorders see torch's operations only."""
    with use_backend("reference"):
        codec = compile_codec(portable_model(family), stream="portable", dtype=torch.float32)
        codec._executor = Executor(CPU, RecordedGraphs())
        yield codec


def test_pictures_are_the_hosts(family, blobs, request):
    expected = [portable_codec(family).decode(blob) for blob in blobs]
    asked = request.getfixturevalue("on_device")
    for blob, x_hat in zip(blobs, expected, strict=True):
        assert torch.equal(portable_codec(family).decode(blob), x_hat)
    assert len(asked) == len(blobs)


def test_one_graph_decodes_without_waiting(captured, blobs, request):
    expected = [captured.decode(blob) for blob in blobs]
    request.getfixturevalue("on_device")
    graphs = captured._executor._graphs
    graphs.events.clear()
    stretches = captured._executor.captures
    for blob, x_hat in zip(blobs, expected, strict=True):
        assert torch.equal(captured.decode(blob), x_hat)
    assert captured._executor.refusals == []
    assert (captured._executor.captures - stretches, graphs.events) == (1, ["launch"])


@pytest.mark.parametrize("family", ["evc-float", "mbt2018-mean"])
def test_batches_are_the_hosts_in_one_graph(captured, blobs, request):
    expected = captured.decode_batch(blobs)
    asked = request.getfixturevalue("on_device")
    graphs = captured._executor._graphs
    graphs.events.clear()
    stretches = captured._executor.captures
    for _ in range(2):
        assert all(map(torch.equal, captured.decode_batch(blobs), expected))
    assert captured._executor.refusals == []
    assert (len(asked), captured._executor.captures - stretches, graphs.events) == (2, 1, ["launch"])


@pytest.mark.parametrize("family", ["mbt2018-mean"])
@torch.inference_mode()
def test_damage_is_found_behind_the_graph(captured, blobs, on_device, monkeypatch):
    calls, decode = [], captured._decode
    monkeypatch.setattr(captured, "_decode", lambda *arguments: calls.append(arguments) or decode(*arguments))
    expected = captured.decode(blobs[0])
    (((payload,),), *rest) = calls[0]
    flipped = bytearray(payload)
    flipped[len(payload) // 2] ^= 1
    for damaged in (payload[:-2], payload + b"ab", bytes(flipped)):
        with pytest.raises(BitstreamError, match="group 0 of 1"):
            decode([[damaged]], *rest)
        assert torch.equal(captured.decode(blobs[0]), expected)


@pytest.mark.parametrize("kind", [RT, DCVC_2021], ids=["dcvc-rt", "dcvc"])  # one has a coding call for each wave
def test_video_frames_are_the_hosts(kind, on_device, monkeypatch):
    codec, frames = kind.compiled(), moving(3, 64, 64)
    payload, state = codec.intra_encode(frames[0], 30)
    following, _ = codec.inter_encode(frames[1], state, 30, 1)
    there = codec.intra_decode(payload, 64, 64, 30)[0], codec.inter_decode(following, state, 64, 64, 30, 1)[0]
    monkeypatch.setattr(portable_video, "decodes_on", lambda device: False)
    here = codec.intra_decode(payload, 64, 64, 30)[0], codec.inter_decode(following, state, 64, 64, 30, 1)[0]
    assert on_device and all(map(torch.equal, there, here))


def test_only_gpus_that_run_the_kernel_decode(monkeypatch):
    monkeypatch.setattr(lanes_cuda, "why_unavailable", lambda backend: None)
    assert lanes_cuda.decodes_on(GPU)
    assert not lanes_cuda.decodes_on(CPU)
    monkeypatch.setattr(lanes_cuda, "why_unavailable", lambda backend: "no driver")
    assert not lanes_cuda.decodes_on(GPU)
