"""Files that appear whole or not at all: a disk that is full names the file, whoever writes it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from torch import nn

from sparsecodec._files import replacing, writing
from sparsecodec.sparsity import ChannelMasks
from sparsecodec.sparsity.latency import Block, LatencyTable
from sparsecodec.sparsity.plans import Plan
from sparsecodec.training.run import _remember_start


class Timer:
    device = "a device"

    def __call__(self, blocks) -> list[float]:
        return [1.0] * len(blocks)


def plan(path: Path) -> None:
    Plan.save(type("Some", (), {"to_json": lambda self: {}})(), path)


WRITERS = {
    "masks.json": lambda path: ChannelMasks({}).save(path),
    "plan.json": plan,
    "latency.json": lambda path: LatencyTable(Timer(), path).ms([Block("a", "a", nn.Identity(), (1,))]),
    "started_from.txt": lambda path: _remember_start(path.parent, "a", nn.Conv2d(1, 1, 1)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_names_the_file(tmp_path, monkeypatch, name: str) -> None:
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError) as caught:
        WRITERS[name](tmp_path / name)
    assert str(caught.value) == f"{tmp_path / name} cannot be written: No space left on device"
    monkeypatch.undo()
    WRITERS[name](tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_other_errors_pass_and_nothing_is_left(tmp_path) -> None:
    with pytest.raises(ValueError, match="mine"), writing(tmp_path / "a"), replacing(tmp_path / "a") as partial:
        partial.touch()
        raise ValueError("mine")
    assert not list(tmp_path.iterdir())
