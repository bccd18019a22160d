"""Every golden stream still decodes to the same symbols, and what follows from integers alone still has its bytes."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest
import torch

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


def test_there_are_enough_and_none_is_missing():
    assert len(ENTRIES) >= 200
    known = [golden.key(entry) for entry in ENTRIES]
    assert len(set(known)) == len(known)
    assert {golden.key(entry) for entry in golden.wanted()} <= set(known), "run golden.py add"
    assert golden.MANIFEST.stat().st_size < 450_000


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


def check_picture(entry: dict, x: torch.Tensor, size: list[int]) -> None:
    """The picture comes from floating point, on some machines bfloat16: the same picture, not the same bits.

    Codecs with exact pictures have their bytes, too.
    """
    now = golden.seen(entry["model"], x)
    assert tuple(x.shape) == (1, 3, *size) and abs(now["mean"] - entry["mean"]) < 0.01, golden.key(entry)
    assert now.get("picture") == entry.get("picture"), golden.key(entry)


@pytest.mark.parametrize("model", MODELS)
def test_files(model):
    for entry in of("file"):
        if entry["model"] == model:
            symbols, x = golden.decode_file(entry, stored(entry))
            assert symbols == entry["symbols"], golden.key(entry)
            check_picture(entry, x, entry["size"])


@pytest.mark.parametrize("model", MODELS)
def test_each_file_beside_itself(model):
    """Two of a file go through the networks together; of a file in tiles, one after the other."""
    for entry in of("file"):
        if entry["model"] == model:
            symbols, pictures = golden.decode_together(model, [stored(entry)] * 2, tiled=entry["tiling"] is not None)
            assert symbols == [entry["symbols"]] * 2, golden.key(entry)
            for x in pictures:
                check_picture(entry, x, entry["size"])


@pytest.mark.parametrize("model", golden.CLIPS)
def test_clips(model):
    """Symbols, States and frames: all of them are integers, so there is nothing that a device may round."""
    entries = [entry for entry in of("clip") if entry["model"] == model]
    assert entries
    for entry in entries:
        symbols, frames = golden.decode_clip(entry, stored(entry))
        assert symbols == entry["symbols"], golden.key(entry)
        assert frames == entry["frames"] and len(set(frames)) > 1, golden.key(entry)


@pytest.mark.parametrize("model", golden.BATCHED)
def test_batches(model):
    """Different pictures that were encoded at once: each decodes beside its neighbours to what it is alone."""
    entries = [entry for entry in of("batch") if entry["model"] == model]
    assert entries
    for entry in entries:
        files = [
            {"model": model, **{name: entry[name][k] for name in golden.RESULTS if name in entry}}
            for k in range(entry["count"])
        ]
        assert len({file["symbols"] for file in files}) == entry["count"], "one picture's symbols are another's"
        alone = [golden.decode_file(file, stored(file)) for file in files]
        for order in (1, -1):
            symbols, pictures = golden.decode_together(model, [stored(file) for file in files[::order]])
            assert symbols == [file["symbols"] for file in files[::order]], golden.key(entry)
            for file, x, (symbols_alone, x_alone) in zip(files[::order], pictures, alone[::order], strict=True):
                check_picture(file, x, entry["size"])
                assert symbols_alone == file["symbols"] and torch.equal(x, x_alone), golden.key(entry)


@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512"])
@pytest.mark.parametrize("model", [model for model in MODELS if model.startswith("native/")])
def test_native_files_on_each_instruction_set(model, isa, instruction_sets, monkeypatch):
    """Numerics 1 says so; the bits of what chooses the tables must agree for it."""
    if isa not in instruction_sets:
        pytest.skip(f"this processor has no {isa}")
    monkeypatch.setenv("SPARSECODEC_CPU_ISA", isa)
    for entry in of("file"):
        if entry["model"] == model:
            assert golden.decode_file(entry, stored(entry))[0] == entry["symbols"], golden.key(entry)
