"""Whether Triton's interpreter finds the symbols of whole pictures that the CPU kernels find.

``python bench/interpreted_symbols.py FOLDER`` encodes the folder's pictures to portable files, decodes each in the
interpreter as far as the symbols go, and writes ``bench/results/interpreted_symbols.json``. A picture of 768x512 takes
about a minute of a core; `bench/same_symbols.py` has thousands of small ones.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from same_symbols import symbols

from sparsecodec import compile_codec, load
from sparsecodec.cli.options import DEFAULT_MODEL
from sparsecodec.data import list_images, read_image
from sparsecodec.entropy import observing
from sparsecodec.info import device_name, environment
from sparsecodec.ops import _triton_rules

RESULTS = Path(__file__).parent / "results" / "interpreted_symbols.json"
INTERPRETER = {"TRITON_INTERPRET": "1", "SPARSECODEC_BACKEND": "triton"}


class SymbolsAreKnown(Exception):
    """What follows is the synthesis, which has no part in this."""


def interpret(name: str, paths: list[str]) -> None:
    """Prints a line for each file, as in a sums file; the environment is `INTERPRETER`."""
    torch.set_num_threads(1)
    _triton_rules.INTERPRETER_LIMIT = sys.maxsize
    codec = compile_codec(load(name), stream="portable")
    assert all("triton" in codec._transforms[path].backends for path in codec.ENTROPY)

    def synthesis(*_: object) -> None:
        raise SymbolsAreKnown

    codec._picture = synthesis
    for path in paths:
        digest, blob = hashlib.sha256(), Path(path).read_bytes()

        def add(found: np.ndarray, digest=digest) -> None:
            digest.update(found.astype("<i4", copy=False).tobytes())

        with contextlib.suppress(SymbolsAreKnown), observing(add):
            codec.decode(blob)
        print(f"{digest.hexdigest()}  {Path(path).name}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="of pictures")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--interpret", nargs="+", metavar="FILE", help=argparse.SUPPRESS)  # in a process of its own
    arguments = parser.parse_args()
    if arguments.interpret:
        interpret(arguments.model, arguments.interpret)
        return
    codec = compile_codec(load(arguments.model), stream="portable")
    with tempfile.TemporaryDirectory() as made:
        for index, path in enumerate(list_images(arguments.folder)):
            (Path(made) / f"whole-{index:06}.spc").write_bytes(codec.encode(read_image(path)))
        expected = symbols(arguments.model, Path(made), {}, threads=1, crops=0, whole=True)
        files = sorted(map(str, Path(made).iterdir()))
        command = [sys.executable, __file__, arguments.folder, "--model", arguments.model, "--interpret"]
        running = [
            subprocess.Popen([*command, *share], env=os.environ | INTERPRETER, stdout=subprocess.PIPE, text=True)
            for share in (files[start :: arguments.processes] for start in range(arguments.processes))
            if share
        ]
        printed = "".join(process.communicate()[0] for process in running)
    found = {file: digest for digest, file in map(str.split, printed.splitlines())}
    result = {
        "model": arguments.model,
        "decoder": "Triton's interpreter",
        "pictures": len(files),
        "equal": sum(found.get(file) == digest for file, digest in expected.items()),
        "device": device_name(),
        "environment": environment(),
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{result['equal']} of {len(files)} pictures have the same symbols")
    sys.exit(result["equal"] < len(files))


if __name__ == "__main__":
    main()
