"""Golden portable streams, made on a CPU, on a GPU: the same symbols and, where pictures are exact, the same bits."""

from __future__ import annotations

import pytest
import torch

from sparsecodec.runtime.adapters import portable, portable_video

from .test_golden import check_picture, golden, of, stored

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICE = "cuda"
FILES = sorted(name for name in {entry["model"] for entry in of("file")} if "portable" in name or "exact" in name)


@pytest.fixture(params=["host", "device"])
def coder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the bytes are decoded; symbols are seen on the host only."""
    if request.param == "host":
        for module in (portable, portable_video):
            monkeypatch.setattr(module, "decodes_on", lambda device: False)
    return request.param


@pytest.mark.parametrize("model", FILES)
def test_files(model: str, coder: str):
    for entry in of("file"):
        if entry["model"] == model:
            symbols, x = golden.decode_file(entry, stored(entry), DEVICE)
            assert coder == "device" or symbols == entry["symbols"], golden.key(entry)
            check_picture(entry, x, entry["size"])


@pytest.mark.parametrize("model", golden.CLIPS)
def test_clips(model: str, coder: str):
    entries = [entry for entry in of("clip") if entry["model"] == model]
    assert entries
    for entry in entries:
        symbols, frames = golden.decode_clip(entry, stored(entry), DEVICE)
        assert coder == "device" or symbols == entry["symbols"], golden.key(entry)
        assert frames == entry["frames"], golden.key(entry)
