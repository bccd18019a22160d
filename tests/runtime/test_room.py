"""Memory that runs out: what earlier calls left makes room, and what still does not fit is told with figures."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sparsecodec import zoo
from sparsecodec._clip_format import ClipFormat
from sparsecodec.errors import ResourceLimitError
from sparsecodec.models import create
from sparsecodec.ops import use_backend
from sparsecodec.runtime import CompiledCodec, compile_codec, planning
from sparsecodec.runtime.executor import Executor
from sparsecodec.runtime.transform import CompiledTransform

from ..toy_video import ToyVideo, moving
from .conftest import build
from .recorded_graphs import RecordedGraphs

OUT = "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"


def _codec(name: str = "evc-nano") -> CompiledCodec:
    return compile_codec(build(name, "dense"), dtype=torch.float32)


def _held(codec: CompiledCodec) -> int:
    return sum(transform.buffer_bytes for transform in codec._transforms.values())


def _limit(codec: CompiledCodec, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """As if the machine had so much memory for buffers."""
    monkeypatch.setattr(planning, "available_bytes", lambda device: size - _held(codec))


@pytest.mark.parametrize("name", ["evc-nano", "mbt2018-mean"])
def test_idle_buffers_make_room(name, photo, monkeypatch):
    codec = _codec(name)
    x = photo[:, :, :128, :128]
    blob = codec.encode(x)
    picture = codec.decode(blob)
    for keeper in codec.keepers:
        keeper.release()
    codec.encode(x), codec.decode(blob)
    _limit(codec, monkeypatch, _held(codec))  # exactly what this size takes
    small = codec.encode(x[:, :, :64, :64])
    rate = (1.0,) if name == "evc-nano" else ()
    for again, expected in (
        (lambda: codec.encode(x), blob),
        (lambda: codec.encode_batch([x])[0], blob),
        (lambda: codec.decode(blob).tolist(), picture.tolist()),
        (lambda: codec.decode_batch([blob])[0].tolist(), picture.tolist()),
        (lambda: len(codec.compress(x, *rate)), 2),
    ):
        codec.decode(small)
        assert again() == expected
    with pytest.raises(ResourceLimitError, match="would fit"):
        codec.encode(photo[:, :, :192, :192])
    assert codec.encode(x) == blob


class Crowded(ToyVideo):
    """There is no memory for a frame until buffers of earlier ones are gone."""

    def __init__(self) -> None:
        super().__init__()
        self.holds = False
        self.keepers = [self]

    keepers: list = []

    def release(self) -> None:
        self.calls.append("release")
        self.holds = False

    def _state(self, *args):
        if self.holds:
            raise RuntimeError(OUT)
        return super()._state(*args)


def test_idle_buffers_of_a_video_codec_make_room():
    """In the middle of a clip; a frame that is coded twice leaves the bytes of one that is coded once."""
    frames, form = moving(5), ClipFormat(33, 50)

    def coded(codec) -> bytes:
        encoder = codec.encoder(form, intra_period=3)
        pieces = []
        for frame in frames:
            pieces.append(encoder.push(frame))
            codec.holds = True
        return b"".join([*pieces, encoder.finish()])

    crowded = Crowded()
    data = coded(crowded)
    assert data == coded(ToyVideo()) and crowded.calls.count("release") == 4
    crowded.holds = True
    assert all(map(torch.equal, crowded.decoder(data), ToyVideo().decoder(data)))
    assert crowded.calls.count("release") == 5
    crowded.keepers = []
    crowded.holds = True
    with pytest.raises(ResourceLimitError, match="no memory for decoding 64 x 48"):
        list(crowded.decoder(data))


@pytest.mark.parametrize("name", ["dcvc-rt-tiny", "dcvc-rt-tiny-portable", "dcvc-hem-tiny", "dcvc-tiny", "fvc-tiny"])
def test_video_codecs_hold_buffers_and_let_go_of_them(name):
    codec = compile_codec(
        zoo.load(name) if name in zoo.names() else create(name).eval(),
        dtype=torch.float32,
        stream="portable" if name.endswith("portable") else "native",
    )
    frames, form = moving(2, 64, 64), ClipFormat(64, 64)

    def coded() -> bytes:
        encoder = codec.encoder(form)
        return b"".join([*(encoder.push(frame) for frame in frames), encoder.finish()])

    first = coded()
    held = [keeper for keeper in codec.keepers if keeper.holds]
    assert len(held) > 10
    for keeper in held:
        keeper.release()
    assert not any(keeper.holds for keeper in codec.keepers)
    assert coded() == first


def test_captures_make_room_with_the_buffers_that_they_hold(photo, monkeypatch):
    with use_backend("reference"):
        codec = _codec()
        codec._executor = Executor(torch.device("cpu"), graphs := RecordedGraphs())
        given_back = []
        monkeypatch.setattr(graphs, "give_back", lambda: given_back.append(codec._executor.captures))
        x = photo[:, :, :128, :128]
        blob = codec.encode(x)
        captures = codec._executor.captures
        _limit(codec, monkeypatch, _held(codec))
        codec.encode(x[:, :, :64, :128])
        assert given_back == [0] and codec._executor.captures == captures, "of the new size only"
        assert codec.encode(x) == blob and given_back == [0, 0] and codec._executor.captures == captures


def test_a_picture_that_fits_alone_in_no_case_is_not_coded_twice(photo, monkeypatch):
    codec = _codec()
    for keeper in codec.keepers:
        keeper.release()
    plans = []
    monkeypatch.setattr(planning, "available_bytes", lambda device: plans.append(device) or 1000)
    with pytest.raises(ResourceLimitError, match="enc on cpu needs"):
        codec.encode(photo)
    assert len(plans) == 1


def _starved(*args, **options):
    raise RuntimeError(OUT)


def test_memory_that_runs_out_beside_the_plan_is_told_with_figures(photo, monkeypatch):
    codec = _codec()
    x = photo[:, :, :64, :128]
    blob, payload = codec.encode(x), codec.compress(x, 1.0)["bit_stream"]
    monkeypatch.setattr(planning, "available_bytes", lambda device: 2**20)
    told = r"128 x 64 pixels on cpu, which needs about [\d.]+ MiB, 1.0 MiB are free: about \d+ pixels would fit \(.*Def"
    with monkeypatch.context() as patch:
        patch.setattr(F, "pad", _starved)
        with pytest.raises(ResourceLimitError, match=f"no memory for encoding {told}"):
            codec.encode(x)
        with pytest.raises(ResourceLimitError, match=f"no memory for encoding 2 times {told}"):
            codec.encode_batch([x, x])
    with monkeypatch.context() as patch:
        patch.setattr("sparsecodec.runtime.adapters.evc.finished", _starved)
        for decode in (lambda: codec.decode(blob), lambda: codec.decompress(payload, 64, 128, 1.0)):
            with pytest.raises(ResourceLimitError, match=f"no memory for decoding {told}"):
                decode()
        with pytest.raises(ResourceLimitError, match=f"no memory for encoding {told}"):
            codec.compress(x, 1.0)
    with monkeypatch.context() as patch:
        patch.setattr(CompiledTransform, "_run", lambda *args: torch.empty(2) + torch.empty(3))  # no matter of memory
        with pytest.raises(RuntimeError, match="must match"):
            codec.encode(x)
    assert codec.encode(x) == blob


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory."), RuntimeError(OUT)])
def test_every_way_of_running_out_is_known(error, photo, monkeypatch):
    def starved(*args, **options):
        raise error

    codec = _codec()
    monkeypatch.setattr(codec, "_encode", starved)
    with pytest.raises(ResourceLimitError, match="no memory for encoding"):
        codec.encode(photo[:, :, :64, :64])


def test_a_status_holds_no_frames(photo, monkeypatch):
    """They would hold the tensors of what failed while the rest of a batch is decoded."""
    codec = _codec()
    blob = codec.encode(photo[:, :, :64, :64])
    monkeypatch.setattr(codec, "_decode", _starved)
    (result,) = codec.decode_batch([blob], on_error="status")
    assert type(result.error) is ResourceLimitError
    assert result.error.__traceback__ is result.error.__cause__ is result.error.__context__ is None


@pytest.mark.parametrize(
    "limit, used, stat, free",
    [
        ("max", "5", "inactive_file 0", 2**20),
        ("700000", "200000", "anon 7\ninactive_file 1000", 501000),
        ("700000", "800000", "anon 7", 0),
        ("70000000", "0", "", 2**20),
        (None, None, None, 2**20),
    ],
)
def test_the_limit_of_a_container_counts(limit, used, stat, free, tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemTotal: 4096 kB\nMemAvailable: 1024 kB\n")
    monkeypatch.setattr(planning, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(planning, "CGROUP", tmp_path)
    for name, content in (("max", limit), ("current", used), ("stat", stat)):
        if content is not None:
            (tmp_path / f"memory.{name}").write_text(content + "\n")
    assert planning.available_bytes(torch.device("cpu")) == free
