"""Times of whole decodes of the codecs in docs/results.md, entropy coding included, interleaved.

Of a picture codec kodim23 is decoded, of a video codec the second P frame of a pan over it, 512x256.

``python bench/decode_ms.py evc-tiny search-0=FILE ...``, each a zoo name, or a name and a file, replaces
bench/results/decode_ms.json, so that all numbers are of one run; with ``--append`` it adds a run, for codecs that were
made later, beside some of the former to compare with. Streams are those that ``sparsecodec encode`` writes: portable
where the model's integers are there.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from conftest import RESULTS, HostClock
from torch import Tensor, nn

import sparsecodec
from sparsecodec import compile_codec, load
from sparsecodec.cli.options import usual_stream
from sparsecodec.data import read_image
from sparsecodec.info import device_name, environment
from sparsecodec.models.video import VideoCodec
from sparsecodec.runtime.video import fingerprint

PICTURE = Path(sparsecodec.__file__).parent / "data" / "pictures" / "kodim23.png"
HEIGHT, WIDTH, QP, PAN = 256, 512, 32, 3  # of a video codec's frames; pixels from one to the next
LEAST_DB = 38  # of the compiled codec's picture against the model's own


def of_picture(model: nn.Module, picture: Tensor) -> Callable[[], Tensor]:
    """Decodes `picture`, whose error against the model's own one was looked at."""
    codec = compile_codec(model, dtype=torch.bfloat16, stream=usual_stream(model))
    blob = codec.encode(picture)
    middle = torch.tensor([model.round_q_scale(model.q_scales(3)[1])])  # that of quality 50, which `encode` takes
    with torch.no_grad():
        expected = model(picture, middle)["x_hat"]
    error = (codec.decode(blob).float() - expected).square().mean()
    assert -10 * error.log10() > LEAST_DB, float(-10 * error.log10())
    return lambda: codec.decode(blob)


@torch.inference_mode()
def of_frame(model: nn.Module, picture: Tensor) -> Callable[[], Tensor]:
    """Decodes the second P frame, which comes out as it was encoded."""
    codec = compile_codec(model, dtype=torch.bfloat16, stream=usual_stream(model))
    frames = [codec.padded(picture[:, :, 100 : 100 + HEIGHT, PAN * t : PAN * t + WIDTH]) for t in range(3)]
    _, state = codec.intra_encode(frames[0], QP)
    _, state = codec.inter_encode(frames[1], state, QP, 1)
    state = copy.deepcopy(state)  # a codec may write its own again
    payload, after = codec.inter_encode(frames[2], state, QP, 2)
    expected = fingerprint(after)

    @torch.inference_mode()
    def run() -> Tensor:
        return codec.inter_decode(payload, state, *frames[0].shape[2:], QP, 2)

    assert fingerprint(run()[1]) == expected
    return run


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("codecs", nargs="+", metavar="NAME[=FILE]")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--append", action="store_true", help="keep the runs that are there")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    picture, calls = read_image(PICTURE), {}
    for given in args.codecs:
        name, _, path = given.partition("=")
        model = load(path or name)
        calls[name] = [(of_frame if isinstance(model, VideoCodec) else of_picture)(model, picture)]
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
    path = RESULTS / "decode_ms.json"
    runs = json.loads(path.read_text())["runs"] if args.append else []
    path.write_text(json.dumps({"runs": [*runs, found]}, indent=1) + "\n")
    print("\n".join(f"{name:28s} {value:7.1f} ms" for name, value in found["ms"].items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
