"""Every golden stream still decodes to the same symbols, and what follows from integers alone still has its bytes."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest

from sparsecodec.entropy import Container

from ..conftest import load_script

SCRIPT = Path(__file__).parent / "golden.py"

golden = load_script(SCRIPT)
ENTRIES = golden.read()
MODELS = sorted({entry["model"] for entry in ENTRIES if entry["kind"] == "file"})


def of(kind: str) -> list[dict]:
    return [entry for entry in ENTRIES if entry["kind"] == kind]


def stored(entry: dict) -> bytes:
    data = base64.b64decode(entry["data"])
    assert hashlib.sha256(data).hexdigest() == entry["sha256"]
    return data


def test_there_are_a_hundred_and_none_is_missing():
    assert len(ENTRIES) >= 100
    known = [golden.key(entry) for entry in ENTRIES]
    assert len(set(known)) == len(known)
    assert {golden.key(entry) for entry in golden.wanted()} <= set(known), "run golden.py add"
    assert golden.MANIFEST.stat().st_size < 400_000


@pytest.mark.parametrize("kind", ["rans", "lanes"])
def test_streams(kind):
    for entry in of(kind):
        data = golden.coded(entry)
        assert hashlib.sha256(data).hexdigest() == entry["sha256"], golden.key(entry)
        symbols = golden.decoded(entry, stored(entry) if "data" in entry else data)
        assert hashlib.sha256(symbols.astype("<i4").tobytes()).hexdigest() == entry["symbols"], golden.key(entry)


def test_containers():
    for entry in of("container"):
        data, wanted = stored(entry), golden.container(entry)
        assert wanted.to_bytes() == data, golden.key(entry)
        assert Container.from_bytes(data) == wanted, golden.key(entry)


@pytest.mark.parametrize("model", MODELS)
def test_files(model):
    for entry in of("file"):
        if entry["model"] == model:
            symbols, mean = golden.decode_file(entry, stored(entry))
            assert symbols == entry["symbols"], golden.key(entry)
            # The picture comes from floating point, on some machines bfloat16: the same picture, not the same bits.
            assert abs(mean - entry["mean"]) < 0.01, golden.key(entry)


@pytest.mark.parametrize("model", MODELS)
def test_batches(model):
    """Each file beside itself, so that two go through the networks together."""
    entries = [entry for entry in of("file") if entry["model"] == model for _ in range(2)]
    pictures = golden.codec(model).decode_batch([stored(entry) for entry in entries])
    for entry, x in zip(entries, pictures, strict=True):
        assert tuple(x.shape) == (1, 3, *entry["size"]) and abs(float(x.double().mean()) - entry["mean"]) < 0.01
