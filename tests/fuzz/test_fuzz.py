"""The Python fuzz targets in a short form; and that a checkpoint cannot execute code."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sparsecodec.errors import UsageError
from sparsecodec.models import create
from sparsecodec.zoo import load, save

SCRIPT = Path(__file__).parent / "fuzz.py"
EXECUTIONS = {
    "container": 3000,
    "header": 3000,
    "decode-native": 60,
    "decode-portable": 60,
    "decode-autoregressive": 30,
    "decode-batch": 60,
    "decode-region": 100,
    "differential": 1500,
    "video": 3000,
    "decode-video": 400,
    "video-rt": 60,
    "video-rt-portable": 60,
    "decode-video-rt": 30,
    "decode-video-rt-portable": 30,
    "video-hem-portable": 60,
    "decode-video-hem-portable": 30,
    "video-dcvc-portable": 60,
    "video-fvc-portable": 60,
    "decode-video-dcvc-portable": 30,
    "decode-video-fvc-portable": 30,
    "decode-video-hem": 8,
    "decode-video-dcvc": 8,
    "decode-video-fvc": 8,
    "units": 2000,
    "payload-32": 3000,
    "decode-units": 40,
    "frame-files": 2000,
    "drop-in": 1000,
}


@pytest.mark.parametrize("name", [*EXECUTIONS, "checkpoint"])
def test_target(name, tmp_path):
    count = EXECUTIONS.get(name, 40)
    command = [sys.executable, SCRIPT, name, "--executions", str(count), "--seconds", "300", "--folder", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"ok   {name}: {count} executions" in done.stdout


def test_a_broken_promise_is_found(tmp_path):
    """What the lane is worth: a container that no longer looks at checksums."""
    broken = "import sparsecodec.entropy.bitstream as b; b.crc32c = lambda data: 0; import runpy, sys; "
    broken += f"sys.argv = ['fuzz.py', 'header', '--executions', '3000', '--folder', {str(tmp_path)!r}]; "
    broken += f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", broken], capture_output=True, text=True)
    assert done.returncode == 1 and "FAIL header" in done.stdout, done.stdout + done.stderr
    assert [path for path in tmp_path.iterdir() if path.name.startswith("header-")]


NEIGHBOUR = (
    "import sparsecodec.runtime.codec as c; real = c.CompiledCodec._decode_together; "
    "c.CompiledCodec._decode_together = lambda self, *some: real(self, *some)[::-1]; "
)
SHIFTED = (
    "import sparsecodec.runtime.tiles as t; real = t._part; "
    "t._part = lambda x, a, b: real(x.roll(1, 3) if a.left else x, a, b); "
)
BREAKS = {
    "decode-batch": NEIGHBOUR,
    "decode-region": SHIFTED,
    "video": "import sparsecodec.entropy.video_file as f; f.VideoReader._read_end = lambda self, head: None; ",
    "decode-video": "import sparsecodec.runtime.video as v; v.fingerprint = lambda state: 0; ",
}


@pytest.mark.parametrize("name", BREAKS)
def test_what_shows_something_else_is_found(name, tmp_path):
    """The neighbour's picture, a tile a pixel beside its place; no look at the end, no fingerprints of states."""
    broken = BREAKS[name] + "import runpy, sys; "
    broken += f"sys.argv = ['fuzz.py', {name!r}, '--executions', '3000', '--folder', {str(tmp_path)!r}]; "
    broken += f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", broken], capture_output=True, text=True)
    assert done.returncode == 1 and f"FAIL {name}" in done.stdout, done.stdout + done.stderr


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["pickle", "torch", "pickle as JSON", "behind a header"])
def test_a_checkpoint_executes_nothing(form, tmp_path):
    mark = tmp_path / "executed"
    pickle.loads(pickle.dumps(Bomb(tmp_path / "works")))
    assert (tmp_path / "works").exists()
    torch.manual_seed(0)
    save(create("evc-nano"), tmp_path / "model")
    weights, text = tmp_path / "model.safetensors", tmp_path / "model.json"
    bomb = pickle.dumps({"state_dict": Bomb(mark)})
    if form == "pickle":
        weights.write_bytes(bomb)
    if form == "torch":
        torch.save({"state_dict": Bomb(mark)}, weights)
    if form == "pickle as JSON":
        text.write_bytes(bomb)
    if form == "behind a header":
        weights.write_bytes(weights.read_bytes() + bomb)
    with pytest.raises(UsageError):
        load(tmp_path / "model")
    assert not mark.exists()
