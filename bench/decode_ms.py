"""Times of whole decodes of the codecs in docs/results.md, entropy coding included, interleaved on one picture.

``python bench/decode_ms.py evc-tiny search-0=FILE ...``, each a zoo name, or a name and a file, replaces
bench/results/decode_ms.json, so that all numbers are of one run. Streams are those that ``sparsecodec encode`` writes:
portable where the model's integers are there.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import median

import torch
from conftest import RESULTS, HostClock

import sparsecodec
from sparsecodec import compile_codec, load
from sparsecodec.cli.options import usual_stream
from sparsecodec.data import read_image
from sparsecodec.info import device_name, environment

PICTURE = Path(sparsecodec.__file__).parent / "data" / "pictures" / "kodim23.png"
LEAST_DB = 38  # of the compiled codec's picture against the model's own


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("codecs", nargs="+", metavar="NAME[=FILE]")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    picture, calls = read_image(PICTURE), {}
    for given in args.codecs:
        name, _, path = given.partition("=")
        model = load(path or name)
        codec = compile_codec(model, dtype=torch.bfloat16, stream=usual_stream(model))
        blob = codec.encode(picture)
        middle = torch.tensor([model.round_q_scale(model.q_scales(3)[1])])  # that of quality 50, which `encode` takes
        with torch.no_grad():
            expected = model(picture, middle)["x_hat"]
        error = (codec.decode(blob).float() - expected).square().mean()
        assert -10 * error.log10() > LEAST_DB, (name, float(-10 * error.log10()))
        calls[name] = [lambda codec=codec, blob=blob: codec.decode(blob)]
    times = HostClock().race(calls, args.rounds)
    found = {
        "picture": f"{PICTURE.stem} {picture.shape[3]}x{picture.shape[2]}",
        "dtype": "bfloat16",
        "threads": args.threads,
        "rounds": args.rounds,
        "device": device_name(),
        "environment": environment(),
        "ms": {name: round(1e3 * median(values), 2) for name, values in times.items()},
    }
    (RESULTS / "decode_ms.json").write_text(json.dumps(found, indent=1) + "\n")
    print("\n".join(f"{name:28s} {value:7.1f} ms" for name, value in found["ms"].items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
