"""Whether a portable codec's symbols are the same whatever decodes them: instruction sets, backends, threads, batches.

``python bench/same_symbols.py FOLDER --crops 10000`` encodes the folder's pictures and as many crops of them, in
batches of 1, 4 and 16, decodes the files in a process for each decoder, and writes ``bench/results/same_symbols.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsecodec import compile_codec, load
from sparsecodec.cli.options import DEFAULT_MODEL
from sparsecodec.data import list_images, read_image
from sparsecodec.info import device_name, environment

RESULTS = Path(__file__).parent / "results" / "same_symbols.json"
SIDE = 64  # of the crops
BATCHES, ENCODING_THREADS = (1, 4, 16), (1, 2)
TRITON_CROPS = 32  # the interpreter takes seconds for each
SLOW_CROPS = 1000  # of scalar code and the reference


def decoders(crops: int) -> Iterator[tuple[str, dict[str, str], int, int]]:
    """(name, environment, threads, crops); the first one says what is right."""
    for isa, threads in (("avx512", 1), ("avx512", 2), ("avx512", 8), ("avx2", 1), ("avx2", 3)):
        yield f"cpu, {isa}", {"SPARSECODEC_CPU_ISA": isa}, threads, crops
    slow = min(crops, SLOW_CROPS)
    yield "cpu, scalar", {"SPARSECODEC_CPU_ISA": "scalar"}, 2, slow
    yield "reference", {"SPARSECODEC_BACKEND": "reference"}, 1, slow
    interpreter = {"SPARSECODEC_BACKEND": "triton", "TRITON_INTERPRET": "1"}
    yield "Triton's interpreter", interpreter, 1, min(crops, TRITON_CROPS)


def crops_of(pictures: list[Tensor], count: int) -> Tensor:
    """``[count, 3, SIDE, SIDE]``, places by a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    crops = []
    for index in range(count):
        x = pictures[index % len(pictures)]
        top, left = (int(torch.randint(side - SIDE + 1, (), generator=generator)) for side in x.shape[2:])
        crops.append(x[:, :, top : top + SIDE, left : left + SIDE])
    return torch.cat(crops) if crops else torch.empty(0, 3, SIDE, SIDE)


def encode(name: str, pictures: list[Tensor], crops: Tensor, folder: Path) -> list[dict[str, Any]]:
    """Writes a file for each, ``whole-*`` and ``crop-*``; a row for each way to encode, which all have to agree."""
    rows, first = [], None
    for threads in ENCODING_THREADS:
        torch.set_num_threads(threads)
        for batch in BATCHES:
            codec = compile_codec(load(name), stream="portable")
            blobs = [codec.encode_batch(group, batch=batch) for group in (pictures, crops)]
            first = first or blobs
            same = sum(a == b for old, new in zip(first, blobs, strict=True) for a, b in zip(old, new, strict=True))
            rows.append({"threads": threads, "batch": batch, "files": sum(map(len, blobs)), "equal_files": same})
            print(rows[-1], flush=True)
    for kind, group in zip(("whole", "crop"), first, strict=True):
        for index, blob in enumerate(group):
            (folder / f"{kind}-{index:06}.spc").write_bytes(blob)
    return rows


def symbols(name: str, folder: Path, extra: dict[str, str], threads: int, crops: int, whole: bool) -> dict[str, str]:
    """File -> SHA-256 of its symbols, as one decoder finds them."""
    files = sorted(folder.glob("crop-*"))[:crops] + (sorted(folder.glob("whole-*")) if whole else [])
    with tempfile.TemporaryDirectory() as some:
        for path in files:
            (Path(some) / path.name).symlink_to(path)
        sums = Path(some) / "sums"
        command = [sys.executable, "-m", "sparsecodec", "verify", some, "-m", name, "--sums", str(sums)]
        subprocess.run(
            [*command, "--threads", str(threads)],
            env=os.environ | extra,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
        )
        return {file: digest for digest, file in map(str.split, sums.read_text().splitlines())}


def in_batches(name: str, folder: Path) -> Iterator[dict[str, Any]]:
    """A row for each size of batch: the crops' pictures, in float32, against those that are decoded alone.

    In float32 every bit of a picture is the same whatever it is decoded beside, unless its symbols are others.
    """
    codec = compile_codec(load(name), stream="portable", dtype=torch.float32)
    blobs = [path.read_bytes() for path in sorted(folder.glob("crop-*"))[:SLOW_CROPS]]
    alone = codec.decode_batch(blobs, batch=1)
    for batch in BATCHES[1:]:
        same = sum(map(torch.equal, codec.decode_batch(blobs, batch=batch), alone))
        threads = torch.get_num_threads()
        yield {"decoder": f"cpu, batches of {batch}", "threads": threads, "files": len(blobs), "equal": same}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="of pictures, each at least 64 x 64")
    parser.add_argument("--crops", type=int, default=1000)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    arguments = parser.parse_args()
    pictures = [read_image(path) for path in list_images(arguments.folder)]
    judge, rows = None, []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        encoded = encode(arguments.model, pictures, crops_of(pictures, arguments.crops), folder)
        for name, extra, threads, crops in decoders(arguments.crops):
            found = symbols(arguments.model, folder, extra, threads, crops, whole="TRITON_INTERPRET" not in extra)
            judge = judge or found
            same = sum(judge[file] == digest for file, digest in found.items())
            rows.append({"decoder": name, "threads": threads, "files": len(found), "equal": same})
            print(rows[-1], flush=True)
        rows += in_batches(arguments.model, folder)
    result = {
        "model": arguments.model,
        "pictures": len(pictures),
        "crops": arguments.crops,
        "encoded": encoded,
        "decoded": rows,
        "device": device_name(),
        "environment": environment(),
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    differ = [row for row in encoded if row["equal_files"] < row["files"]] + [
        r for r in rows if r["equal"] < r["files"]
    ]
    print(f"{len(differ)} of {len(encoded) + len(rows)} ways differ")
    sys.exit(bool(differ))


if __name__ == "__main__":
    main()
