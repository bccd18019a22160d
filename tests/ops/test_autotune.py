"""Choosing among tiles, with a clock that is a table."""

from __future__ import annotations

import json
import time
import warnings
from threading import Thread

import pytest
import torch

from sparsecodec.ops import why_unavailable

if why_unavailable("triton") is not None:
    pytest.skip(str(why_unavailable("triton")), allow_module_level=True)

from sparsecodec._triton import _autotune, conv2d_act, pointwise
from sparsecodec._triton._autotune import Tuner, choose

TILES = tuple({"BLOCK_P": p, "num_warps": 4} for p in (64, 128, 32))
DEVICE = "NVIDIA H200"


class Clock:
    """Times by BLOCK_P; keeps what it was asked for."""

    def __init__(self, times: dict[int, float]) -> None:
        self.times = times
        self.timed: list[int] = []

    def __call__(self, run, tiles) -> list[float]:
        for tile in tiles:
            run(tile)
            self.timed.append(tile["BLOCK_P"])
        return [self.times[tile["BLOCK_P"]] for tile in tiles]


def _tuner(folder, times=None, device=DEVICE, version="3.7.1"):
    clock = Clock(times or {64: 3.0, 128: 1.0, 32: 2.0})
    return Tuner(folder, device, clock, version), clock


def _trial(launched):
    return lambda: lambda tile: launched.append(tile["BLOCK_P"])


def test_the_fastest_tile_is_chosen_timed_once_and_kept_for_other_processes(tmp_path):
    launched = []
    tuner, clock = _tuner(tmp_path)
    assert [tuner.choose("gdn", ("float32", 192), TILES, _trial(launched)) for _ in range(2)] == [TILES[1]] * 2
    assert clock.timed == launched == [64, 128, 32]
    other, idle = _tuner(tmp_path, {64: 0.0, 128: 1.0, 32: 2.0})
    assert other.choose("gdn", ("float32", 192), TILES, pytest.fail) == TILES[1]
    assert idle.timed == []
    assert [path.name for path in tmp_path.iterdir()] == ["nvidia-h200.json"]


def test_threads_that_ask_at_once_wait_for_one_timing(tmp_path):
    tuner, clock = _tuner(tmp_path)
    others, found = [], []

    def ask(trial) -> None:
        found.append(tuner.choose("gdn", (192,), TILES, trial))

    def trial():
        others.extend(Thread(target=ask, args=(pytest.fail,)) for _ in range(4))
        for thread in others:
            thread.start()
        time.sleep(0.05)  # for one that would not wait
        return lambda tile: None

    ask(trial)
    for thread in others:
        thread.join()
    assert clock.timed == [64, 128, 32] and found == [TILES[1]] * 5


def test_other_kernels_shapes_devices_and_versions_are_timed_anew(tmp_path):
    tuner, clock = _tuner(tmp_path)
    for name, key in (("gdn", (192,)), ("pointwise", (192,)), ("gdn", (128,))):
        tuner.choose(name, key, TILES, _trial([]))
    assert len(clock.timed) == 9
    for changes in ({"version": "3.8.0"}, {"device": "NVIDIA A100"}):
        other, clock = _tuner(tmp_path, {64: 0.0, 128: 1.0, 32: 2.0}, **changes)
        assert other.choose("gdn", (192,), TILES, _trial([])) == TILES[0] and len(clock.timed) == 3
    again, clock = _tuner(tmp_path)
    assert again.choose("gdn", (192,), TILES, pytest.fail) == TILES[1]


def test_a_tile_that_is_no_longer_offered_is_forgotten(tmp_path):
    _tuner(tmp_path)[0].choose("gdn", (192,), TILES, _trial([]))
    tuner, clock = _tuner(tmp_path)
    assert tuner.choose("gdn", (192,), (TILES[0], TILES[2]), _trial([])) == TILES[2]
    assert clock.timed == [64, 32]


def _content(**changes):
    return json.dumps({"format": 1, "device": DEVICE, "choices": {}} | changes)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", '"text"', "\x00\xff", _content(format=0), _content(device="NVIDIA A100"),
     _content(choices=[1]), _content(choices={"triton 3.7.1 gdn 192": 64})],
)  # fmt: skip
def test_a_damaged_or_foreign_file_costs_one_warning_and_is_replaced(tmp_path, content):
    tuner, clock = _tuner(tmp_path)
    tuner.path.write_text(content)
    with pytest.warns(UserWarning, match="nvidia-h200.json is replaced") as caught:
        assert tuner.choose("gdn", (192,), TILES, _trial([])) == TILES[1]
        assert tuner.choose("gdn", (128,), TILES, _trial([])) == TILES[1]
    assert len(caught) == 1 and len(clock.timed) == 6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _tuner(tmp_path)[0].choose("gdn", (128,), TILES, pytest.fail) == TILES[1]


def test_an_unknown_entry_is_timed_anew(tmp_path):
    tuner, clock = _tuner(tmp_path)
    tuner.path.write_text(_content(choices={"triton 3.7.1 gdn 192": {"BLOCK_P": 7}}))
    assert tuner.choose("gdn", (192,), TILES, _trial([])) == TILES[1]
    assert len(clock.timed) == 3


def test_writers_keep_what_others_wrote_meanwhile(tmp_path):
    first, second = (_tuner(tmp_path)[0] for _ in range(2))
    for tuner in (first, second):
        tuner.choose("gdn", (1,), TILES, _trial([]))
    first.choose("gdn", (2,), TILES, _trial([]))
    second.choose("gdn", (3,), TILES, _trial([]))
    third, clock = _tuner(tmp_path)
    assert [third.choose("gdn", (n,), TILES, pytest.fail) for n in (1, 2, 3)] == [TILES[1]] * 3


def test_a_folder_that_cannot_be_written_costs_one_warning(tmp_path):
    """A file where the folder should be: refused to every user, root included."""
    (tmp_path / "file").write_text("")
    tuner, clock = _tuner(tmp_path / "file")
    with pytest.warns(UserWarning, match="tile choices are not kept") as caught:
        assert [tuner.choose("gdn", (n,), TILES, _trial([])) for n in (1, 2, 1)] == [TILES[1]] * 3
    assert len(caught) == 1 and len(clock.timed) == 6


def test_a_failed_replacement_leaves_no_litter(tmp_path):
    tuner, _ = _tuner(tmp_path)
    tuner.path.mkdir()
    with pytest.warns(UserWarning, match="tile choices are not kept"):
        assert tuner.choose("gdn", (1,), TILES, _trial([])) == TILES[1]
    assert list(tmp_path.iterdir()) == [tuner.path]


def test_the_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("SPARSECODEC_CACHE", str(tmp_path / "own"))
    assert _autotune.cache_folder() == tmp_path / "own"
    monkeypatch.delenv("SPARSECODEC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert _autotune.cache_folder() == tmp_path / "sparsecodec"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert _autotune.cache_folder() == tmp_path / ".cache" / "sparsecodec"


def test_without_a_gpu_the_first_tile_runs_and_nothing_is_read(monkeypatch):
    monkeypatch.setattr(_autotune, "cache_folder", pytest.fail)
    assert choose("gdn", (1,), TILES, torch.device("cpu"), pytest.fail) is TILES[0]


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """`choose` believes in a GPU; returns its clock."""
    clock = Clock({64: 3.0, 128: 1.0, 32: 2.0})
    monkeypatch.setattr(_autotune.Tuner.__init__, "__defaults__", (clock, "3.7.1"))
    monkeypatch.setattr(_autotune, "INTERPRETED", False)
    monkeypatch.setattr(_autotune, "_chosen", {})
    monkeypatch.setattr(_autotune, "_tuners", {})
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: DEVICE)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "device", lambda device: warnings.catch_warnings())
    monkeypatch.setenv("SPARSECODEC_CACHE", str(tmp_path))
    monkeypatch.delenv("SPARSECODEC_AUTOTUNE", raising=False)
    return clock


def test_nothing_is_timed_during_capture_nor_when_turned_off(gpu, monkeypatch):
    device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert choose("gdn", (1,), TILES, device, pytest.fail) is TILES[0]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setenv("SPARSECODEC_AUTOTUNE", "0")
    assert choose("gdn", (1,), TILES, device, pytest.fail) is TILES[0]
    monkeypatch.delenv("SPARSECODEC_AUTOTUNE")
    assert choose("gdn", (1,), TILES, device, _trial([])) == TILES[1]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert choose("gdn", (1,), TILES, device, pytest.fail) == TILES[1]  # known before the capture
    assert gpu.timed == [64, 128, 32]


def test_a_single_tile_is_not_timed(gpu):
    assert choose("gdn", (1,), TILES[2:], torch.device("cuda", 0), pytest.fail) is TILES[2]
    assert gpu.timed == []


def test_a_tile_in_memory_that_is_not_offered_is_not_given(gpu):
    """The same key with a residual that is not aligned, say: the kernel may offer fewer tiles."""
    device = torch.device("cuda", 0)
    assert choose("gdn", (1,), TILES, device, _trial([])) == TILES[1]
    assert choose("gdn", (1,), (TILES[0], TILES[2]), device, _trial([])) == TILES[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="tensors here are on the CPU, for the interpreter")
@pytest.mark.parametrize("kernel", [conv2d_act, pointwise], ids=["conv2d_act", "pointwise"])
def test_scattered_layers_have_keys_of_their_own(kernel, monkeypatch):
    """As wide as a dense one, and with a residual as well."""
    keys = []

    def first(name, key, tiles, device, trial):
        keys.append(key)
        return tiles[0]

    monkeypatch.setattr(kernel, "choose", first)
    run = getattr(kernel, kernel.__name__.rpartition(".")[2])
    weight = torch.rand(16, 16, 1, 1) if kernel is conv2d_act else torch.rand(16, 16)
    x = torch.rand(1, 16, 4, 4).contiguous(memory_format=torch.channels_last)
    for out_index in (None, torch.arange(16)):
        run(x, weight, torch.zeros(16), out_index=out_index, residual=x)
    assert keys[0] != keys[1]
