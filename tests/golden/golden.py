"""Golden streams: bytes that every later version must decode to the same symbols.

``python tests/golden/golden.py add`` appends what is missing to ``streams.json`` and leaves the rest as it is: an entry
never changes. ``test_golden.py`` checks all of them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent))

import numpy as np
import torch
from make import (
    NATIVE,
    VARIABLE,
    integer_rows,
    integers,
    moving,
    native_model,
    picture,
    portable_dcvc,
    portable_fvc,
    portable_hem,
    portable_model,
    portable_video,
)

from sparsecodec._clip_format import ClipFormat
from sparsecodec.cli.options import usual_stream
from sparsecodec.entropy import Container, Decoder, Encoder, EntropyTables, LaneDecoder, LaneEncoder, Tiling
from sparsecodec.entropy import evc_gaussian_tables as evc_rows
from sparsecodec.entropy.coder import observing
from sparsecodec.runtime import CompiledCodec, compile_codec
from sparsecodec.runtime.video import CompiledVideo
from sparsecodec.zoo import load

MANIFEST = Path(__file__).parent / "streams.json"
Entry = dict[str, Any]
# Native files of the zoo and of CompressAI's models have numerics 1: every machine decodes them.
ZOO = ("evc-tiny", "evc-tiny-sparse")
ZOO_LATER = (
    "evc-tiny-sparse-feds",
    "evc-tiny-sparse-portable",
    "evc-tiny-sparse-int8",
    "evc-tiny-sparse-exact",
    "evc-tiny-m",
    "evc-tiny-s",
)
PORTABLE = ("evc-nano", "bmshj2018-factorized", "bmshj2018-hyperprior", "mbt2018-mean")
PORTABLE_VARIABLE = ("bmshj2018-hyperprior-vbr", "mbt2018-mean-vbr")
BATCHED = (
    *(*ZOO, *ZOO_LATER),
    *(f"portable/{name}" for name in PORTABLE),
    *(f"native/{name}" for name in (*NATIVE, *VARIABLE)),
)
CODECS = {
    "portable/dcvc-rt": portable_video,
    "portable/dcvc-hem": portable_hem,
    "portable/dcvc": portable_dcvc,
    "portable/fvc": portable_fvc,
}
CLIPS = ("portable/dcvc-rt", "dcvc-rt-tiny-portable", "portable/dcvc-hem", "portable/dcvc", "portable/fvc")
RESULTS = ("sha256", "data", "symbols", "mean", "picture", "frames")
TOGETHER = 3  # pictures of a batch
LARGEST_KEPT = 4000  # bytes; of longer streams (not files) only the hash is kept, and the encoder makes them again


@cache
def tables(name: str) -> EntropyTables:
    return evc_rows() if name == "evc" else EntropyTables(*integer_rows(40))


def symbols_of(entry: Entry) -> tuple[np.ndarray, np.ndarray]:
    """Symbols and rows of a stream: a slot of the row's distribution for each, one in 64 anything."""
    of, count = tables(entry["tables"]), entry["count"]
    random = integers(3 * count, entry["count"] + entry.get("streams", 0)).reshape(3, count)
    rows = (random[0] % np.uint64(of.rows)).astype(np.int16)
    slots = (random[1] % np.uint64(65536)).astype(np.int64)
    symbols = np.empty(count, np.int32)
    for i, (row, slot) in enumerate(zip(rows, slots, strict=True)):
        symbols[i] = np.searchsorted(of.cdf[row, : of.lengths[row]], slot, side="right") - 1 + of.offsets[row]
    wild = random[2] % np.uint64(64) == 0
    far = (random[2][wild] >> np.uint64(33)).astype(np.int64) - (1 << 30)
    symbols[wild] = far >> (random[1][wild] % np.uint64(30)).astype(np.int64)
    return symbols, rows


def coded(entry: Entry) -> bytes:
    """The bytes of a stream, in two coding calls; nothing in them depends on the machine."""
    symbols, rows = symbols_of(entry)
    lanes = entry["kind"] == "lanes"
    encoder = LaneEncoder(len(symbols)) if lanes else Encoder(entry["streams"])
    for part in (slice(None, len(symbols) // 3), slice(len(symbols) // 3, None)):
        encoder.push(symbols[part], rows[part], tables(entry["tables"]))
    return encoder.finish()


def decoded(entry: Entry, data: bytes) -> np.ndarray:
    """The symbols of a stream."""
    _, rows = symbols_of(entry)
    decoder = LaneDecoder(data, len(rows)) if entry["kind"] == "lanes" else Decoder(data, entry["streams"])
    cut = len(rows) // 3
    parts = [decoder.decode(part, tables(entry["tables"])) for part in (rows[:cut], rows[cut:])]
    decoder.finish()
    return np.concatenate(parts)


def container(entry: Entry) -> Container:
    """What a container holds."""
    seed = entry["seed"]
    count = entry["payloads"]
    payloads = tuple(integers(2 * i + 3, seed + i).tobytes()[i:] for i in range(count))
    tiling = Tiling(*entry["tiling"]) if entry["tiling"] else None
    exact = bool(seed % 2)
    return Container(bytes(range(8)), seed, *entry["size"], 7 * seed, payloads, exact, tiling)


@cache
def codec(name: str, device: str = "cpu") -> CompiledCodec | CompiledVideo:
    if name in CODECS:
        return compile_codec(CODECS[name](), device, stream="portable")
    if name.startswith("portable/"):
        return compile_codec(portable_model(name.removeprefix("portable/")), device, stream="portable")
    if name.startswith("native/"):
        return compile_codec(native_model(name.removeprefix("native/")), device, torch.float32)
    model = load(name)
    return compile_codec(model, device, stream=usual_stream(model))


def decode_together(model: str, blobs: Sequence[bytes], tiled: bool = False) -> tuple[list[str], list[torch.Tensor]]:
    """SHA-256 of each file's symbols, call after call, and the pictures, of files that decode in one group.

    Args:
        tiled: the files, of as many calls each, are decoded one after the other.
    """
    calls: list[bytes] = []
    decode = codec(model).decode_batch  # compiled before anything is observed
    with observing(lambda symbols: calls.append(symbols.astype("<i4").tobytes())):
        pictures = decode(blobs)
    n, each = len(blobs), len(calls) // len(blobs)
    assert each and each * n == len(calls), f"{len(calls)} coding calls of {n} files"
    of = [calls[k * each : (k + 1) * each] if tiled else calls[k::n] for k in range(n)]
    return [hashlib.sha256(b"".join(some)).hexdigest() for some in of], pictures


def decode_file(entry: Entry, data: bytes, device: str = "cpu") -> tuple[str, torch.Tensor]:
    """SHA-256 of a file's symbols as the host decodes them, call after call, and its picture."""
    digest, decode = hashlib.sha256(), codec(entry["model"], device).decode
    with observing(lambda symbols: digest.update(symbols.astype("<i4").tobytes())):
        x = decode(data)
    return digest.hexdigest(), x


def decode_clip(entry: Entry, data: bytes, device: str = "cpu") -> tuple[str, list[str]]:
    """As `decode_file` of a clip, and SHA-256 of each frame: no rounding is left to the device."""
    digest, decoder = hashlib.sha256(), codec(entry["model"], device).decoder
    with observing(lambda symbols: digest.update(symbols.astype("<i4").tobytes())):
        frames = list(decoder(data))
    return digest.hexdigest(), [pixels(x) for x in frames]


def pixels(x: torch.Tensor) -> str:
    """SHA-256 of a picture's values."""
    return hashlib.sha256(x.cpu().numpy().astype("<f4").tobytes()).hexdigest()


def seen(model: str, x: torch.Tensor) -> Entry:
    """What is kept of a picture: its mean, and all of it where no rounding is left to the device."""
    every = {"picture": pixels(x)} if codec(model).exact_pictures else {}
    return {"mean": round(float(x.double().mean()), 4), **every}


def wanted() -> Iterator[Entry]:
    """Every golden stream, without what is known only when it has been made."""
    for of in ("evc", "steps"):
        for count in (0, 1, 17, 300, 1000):
            for streams in (1, 2, 5):
                yield {"kind": "rans", "tables": of, "count": count, "streams": streams}
        for count in (0, 1, 5, 300, 1000, 16400, 40000):
            yield {"kind": "lanes", "tables": of, "count": count}
    for seed, size, payloads, tiling in (
        (1, (1, 1), 1, None), (2, (512, 768), 16, None), (3, ((1 << 24) - 1, 1), 2, None),
        (4, (100, 65), 6, (64, 32)), (5, (129, 64), 6, (64, 0)), (6, (64, 4000), 3, (2048, 512)),
    ):  # fmt: skip
        yield {"kind": "container", "seed": seed, "size": size, "payloads": payloads, "tiling": tiling}
    for name in ZOO:
        for quality, size in ((0, (65, 33)), (100, (64, 64)), (60, (1, 130))):
            yield {"kind": "file", "model": name, "size": size, "quality": quality, "tiling": None}
        yield {"kind": "file", "model": name, "size": (130, 70), "quality": 20, "tiling": (64, 16)}
    for name in PORTABLE:
        for size in ((1, 1), (65, 33), (64, 128), (130, 70), (7, 200)):
            for quality in (0, 80) if name == "evc-nano" else (None,):
                entry = {"kind": "file", "model": f"portable/{name}", "size": size, "quality": quality}
                yield {**entry, "tiling": None}
        tiling = {"tiling": (64, 32)}
        yield {"kind": "file", "model": f"portable/{name}", "size": (70, 100), "quality": None, **tiling}
    for name in ZOO_LATER:
        for size, quality in (((65, 33), 0), ((63, 65), 100), ((1, 1), 60), ((7, 129), 40)):
            yield {"kind": "file", "model": name, "size": size, "quality": quality, "tiling": None}
        yield {"kind": "file", "model": name, "size": (130, 70), "quality": 20, "tiling": (64, 16)}
    for name in NATIVE:
        for size in ((1, 1), (65, 33), (63, 129), (7, 200)):
            yield {"kind": "file", "model": f"native/{name}", "size": size, "quality": None, "tiling": None}
        yield {"kind": "file", "model": f"native/{name}", "size": (70, 100), "quality": None, "tiling": (64, 32)}
    for name in VARIABLE:
        for size, quality in (((1, 1), 0), ((65, 33), 100), ((7, 200), 40)):
            yield {"kind": "file", "model": f"native/{name}", "size": size, "quality": quality, "tiling": None}
        yield {"kind": "file", "model": f"native/{name}", "size": (70, 100), "quality": 80, "tiling": (64, 32)}
    for name in BATCHED:
        for quality in (10, 90) if "evc" in name or "vbr" in name else (None,):
            yield {"kind": "batch", "model": name, "size": (65, 33), "quality": quality, "count": TOGETHER}

    for name in PORTABLE_VARIABLE:
        for size, quality in (((65, 33), 0), ((7, 64), 80)):
            yield {"kind": "file", "model": f"portable/{name}", "size": size, "quality": quality, "tiling": None}

    for name in CLIPS:
        for size, frames, quality, period in (
            ((64, 64), 4, 63, 0),
            ((1, 1), 3, 32, 2),
            ((50, 83), 5, 0, 3),
            ((97, 16), 3, 20, 0),
        ):
            entry = {"kind": "clip", "model": name, "size": size, "count": frames, "quality": quality, "period": period}
            yield from ([entry] if name == CLIPS[0] else [])  # which were made when version 1 was written
            yield {**entry, "container": 2}
        if "dcvc-rt" in name:
            long = {"size": (33, 16), "count": 35, "quality": 40, "period": 0}
            yield {"kind": "clip", "model": name, **long, "container": 2}  # frame 33 drops the memory


def made(entry: Entry) -> Entry:
    """An entry with its bytes and what they must decode to."""
    if entry["kind"] == "clip":
        height, width = entry["size"]
        encoder = codec(entry["model"]).encoder(ClipFormat(height, width), entry["quality"], entry["period"])
        x = torch.from_numpy(moving(entry["count"], height, width))
        return sealed(entry, b"".join([*(encoder.push(frame[None]) for frame in x), encoder.finish()]))
    if entry["kind"] == "batch":
        pictures = [picture(*entry["size"], seed=100 * k + sum(entry["size"])) for k in range(entry["count"])]
        x = torch.from_numpy(np.concatenate(pictures))
        return sealed_batch(entry, codec(entry["model"]).encode_batch(x, entry["quality"]))
    if entry["kind"] == "file":
        x = torch.from_numpy(picture(*entry["size"], seed=sum(entry["size"])))
        tile, overlap = entry["tiling"] or (None, None)
        data = codec(entry["model"]).encode(x, entry["quality"], tile=tile, overlap=overlap)
    elif entry["kind"] == "container":
        data = container(entry).to_bytes()
    else:
        data = coded(entry)
    return sealed(entry, data)


def sealed(entry: Entry, data: bytes) -> Entry:
    """`entry` with these bytes."""
    entry = {**entry, "sha256": hashlib.sha256(data).hexdigest()}
    if entry["kind"] in ("file", "container", "clip") or len(data) <= LARGEST_KEPT:
        entry["data"] = base64.b64encode(data).decode()
    if entry["kind"] == "file":
        entry["symbols"], x = decode_file(entry, data)
        entry |= seen(entry["model"], x)
    elif entry["kind"] == "clip":
        entry["symbols"], entry["frames"] = decode_clip(entry, data)
    elif entry["kind"] != "container":
        entry["symbols"] = hashlib.sha256(decoded(entry, data).astype("<i4").tobytes()).hexdigest()
    return entry


def sealed_batch(entry: Entry, blobs: Sequence[bytes]) -> Entry:
    """`entry` with a list of each thing that one file has; the symbols are those of each file alone."""
    files = [sealed({"kind": "file", "model": entry["model"]}, data) for data in blobs]
    return entry | {name: [file[name] for file in files] for name in files[0] if name in RESULTS}


def read() -> list[Entry]:
    return json.loads(MANIFEST.read_text()) if MANIFEST.exists() else []


def key(entry: Entry) -> str:
    """What an entry is of, without its bytes and results."""
    return json.dumps({k: v for k, v in entry.items() if k not in RESULTS}, sort_keys=True)


def write(entries: list[Entry]) -> None:
    lines = ",\n".join(json.dumps(entry, sort_keys=True, separators=(",", ":")) for entry in entries)
    MANIFEST.write_text(f"[\n{lines}\n]\n")


def add() -> None:
    entries = read()
    known = {key(entry) for entry in entries}
    fresh = [made(entry) for entry in wanted() if key(entry) not in known]
    write([*entries, *fresh])
    print(f"{len(fresh)} added, {len(entries) + len(fresh)} golden streams, {MANIFEST.stat().st_size} bytes")


if __name__ == "__main__":
    if sys.argv[1:] != ["add"]:
        sys.exit("usage: golden.py add")
    add()
