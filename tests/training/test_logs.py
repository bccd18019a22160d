"""Logs: every step once, whatever the run went through."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from sparsecodec.errors import UsageError
from sparsecodec.training.logs import Log, read_log


def write(folder, steps, **options):
    with Log(folder, **options) as log:
        for step in steps:
            log.write({"step": step, "loss": 1 / (1 + step)})


def steps(folder):
    return [record["step"] for record in read_log(folder / "log.jsonl")]


def test_records_come_back(tmp_path):
    with Log(tmp_path / "new" / "run") as log:
        log.write({"step": 0, "loss": 0.5, "beta": 1, "phase": "masks"})
        log.write({"loss": 0.25, "step": np.int64(1)})
    records = read_log(tmp_path / "new" / "run" / "log.jsonl")
    assert records == [{"step": 0, "loss": 0.5, "beta": 1, "phase": "masks"}, {"step": 1, "loss": 0.25}]


def test_resumed_run_has_every_step_once(tmp_path):
    """Cut off after step 7 with a checkpoint of 5 steps: 5, 6 and 7 are written again."""
    write(tmp_path, range(8))
    write(tmp_path, range(5, 10), resume_step=5)
    assert steps(tmp_path) == list(range(10))
    write(tmp_path, range(2))
    assert steps(tmp_path) == [0, 1]


def test_half_written_last_line_is_dropped(tmp_path):
    write(tmp_path, range(4))
    path = tmp_path / "log.jsonl"
    whole = path.read_bytes()
    for cut in (1, 5, 12):  # without the line's end, in a number, in a key
        path.write_bytes(whole[:-cut])
        assert steps(tmp_path) == [0, 1, 2]
        write(tmp_path, [3, 4], resume_step=3)
        assert steps(tmp_path) == [0, 1, 2, 3, 4]
        write(tmp_path, [], resume_step=4)
        assert path.read_bytes() == whole


def test_cut_line_does_not_spoil_the_next_one_even_if_its_step_is_done(tmp_path):
    write(tmp_path, range(3))
    path = tmp_path / "log.jsonl"
    path.write_bytes(path.read_bytes()[:-3])
    write(tmp_path, [3], resume_step=3)  # 2 was lost with its line, and stays so
    assert steps(tmp_path) == [0, 1, 3]


def test_intact_log_is_not_rewritten(tmp_path):
    write(tmp_path, range(4))
    before = os.stat(tmp_path / "log.jsonl").st_ino
    write(tmp_path, [4], resume_step=4)
    assert os.stat(tmp_path / "log.jsonl").st_ino == before
    write(tmp_path, [], resume_step=2)
    assert os.stat(tmp_path / "log.jsonl").st_ino != before  # replaced whole
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["log.jsonl"]


def test_failing_disk_leaves_the_old_log(tmp_path, monkeypatch):
    write(tmp_path, range(4))
    before = (tmp_path / "log.jsonl").read_bytes()

    def fail(source, target):
        raise OSError("disk full")

    monkeypatch.setattr("sparsecodec._files.os.replace", fail)
    with pytest.raises(UsageError, match="log.jsonl cannot be written: disk full"):
        Log(tmp_path, resume_step=2)
    assert (tmp_path / "log.jsonl").read_bytes() == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["log.jsonl"]


def test_a_full_disk_names_the_log(tmp_path):
    log = Log(tmp_path)
    log._file = open("/dev/full", "a")
    with pytest.raises(OSError) as caught:
        log.write({"step": 0})
    assert str(caught.value) == f"{tmp_path / 'log.jsonl'} cannot be written: No space left on device"


def test_lines_are_there_when_the_process_is_killed(tmp_path):
    code = (
        "import os, signal, sys; from sparsecodec.training.logs import Log; log = Log(sys.argv[1])\n"
        "for step in range(3): log.write({'step': step, 'loss': 0.5})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True)
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert steps(tmp_path) == [0, 1, 2]


def test_what_json_cannot_hold_is_null(tmp_path):
    with Log(tmp_path) as log:
        log.write({"step": 0, "loss": float("nan"), "psnr": float("inf"), "ok": True})
    line = (tmp_path / "log.jsonl").read_text()
    assert json.loads(line, parse_constant=pytest.fail) == {"step": 0, "loss": None, "psnr": None, "ok": True}


def test_reading_names_the_line_that_is_wrong(tmp_path):
    path = tmp_path / "log.jsonl"
    for bad in ("no json", "[1]", '{"loss": 1}', '{"step": "one"}'):
        path.write_text('{"step": 0}\n' + bad + '\n{"step": 2}\n')
        with pytest.raises(UsageError, match="line 2 is no JSON object"):
            read_log(path)
    path.write_text("")
    assert read_log(path) == []
    with pytest.raises(UsageError, match="absent.jsonl cannot be read"):
        read_log(tmp_path / "absent.jsonl")


def test_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file.*cannot be written"):
        Log(tmp_path / "file")


def test_tensorboard_holds_the_same_figures(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with Log(tmp_path, tensorboard=True) as log:
        for step in range(6):
            log.write({"step": step, "loss": 0.5 + step, "psnr": float("inf"), "phase": "masks"})
    with Log(tmp_path, tensorboard=True, resume_step=4) as log:
        log.write({"step": 4, "loss": 100.0})
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["loss"]
    assert {event.step: event.value for event in events.Scalars("loss")} == {0: 0.5, 1: 1.5, 2: 2.5, 3: 3.5, 4: 100.0}


def test_tensorboard_is_asked_for_explicitly(tmp_path, monkeypatch):
    write(tmp_path, [0])
    assert not (tmp_path / "tensorboard").exists()
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(UsageError, match=r"needs the extra sparsecodec\[train\]"):
        Log(tmp_path / "other", tensorboard=True)
    assert not (tmp_path / "other").exists()
