"""`compile_codec` itself: its arguments, and what every compiled codec promises."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sparsecodec import UsageError, zoo
from sparsecodec.errors import NoBackendError, ResourceLimitError
from sparsecodec.models import create
from sparsecodec.ops import use_backend
from sparsecodec.runtime import compile_codec

from .conftest import build, pair_of

DECODE = """
import sys, torch
from sparsecodec import compile_codec, load
torch.set_num_threads(2)
codec = compile_codec(load(sys.argv[1]), dtype=torch.float32)
torch.save(codec.decode(open(sys.argv[2], "rb").read()), sys.argv[3])
"""


@pytest.mark.parametrize("which", ["dense", "sparse"])
def test_decodes_in_another_process(codec_files: Path, tmp_path: Path, photo: Tensor, which: str):
    x = photo[:, :, :100, :130]
    codec = compile_codec(zoo.load(codec_files / which), dtype=torch.float32)
    data = codec.encode(x)
    (tmp_path / "photo.spc").write_bytes(data)
    command = [sys.executable, "-c", DECODE, codec_files / which, tmp_path / "photo.spc", tmp_path / "x_hat.pt"]
    subprocess.run(command, check=True, timeout=300)
    assert torch.equal(torch.load(tmp_path / "x_hat.pt"), codec.decode(data))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "evc-tiny"}, "model is a str"),
        ({"model": nn.Conv2d(3, 3, 1)}, "Conv2d has the structure of no known family"),
        ({"stream": "lossless"}, "stream='lossless'"),
        ({"dtype": torch.float64}, "dtype=torch.float64"),
        ({"sample": torch.zeros(1, 1, 64, 64)}, r"\(1, 1, 64, 64\)"),
    ],
    ids=["name", "layer", "stream", "dtype", "sample"],
)
def test_wrong_arguments_are_named(arguments: dict, message: str):
    with pytest.raises(UsageError, match=message):
        compile_codec(**{"model": build("evc-tiny", "dense"), **arguments})


@pytest.mark.parametrize("name", ["evc-nano", "dcvc-rt-image", "fvc-tiny"])
@pytest.mark.parametrize("taken", [copy.copy, copy.deepcopy, pickle.dumps])
def test_compiled_codecs_stay_where_they_are(name: str, taken):
    codec = compile_codec(create(name))
    with pytest.raises(UsageError, match="compiled and cannot be copied or pickled"):
        taken(codec)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_device_is_named():
    with pytest.raises(UsageError, match="no CUDA device"):
        compile_codec(build("evc-tiny", "dense"), device="cuda")


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(3, 64, 64),
        torch.zeros(2, 3, 64, 64),
        torch.zeros(0, 3, 64, 64),
        torch.zeros(1, 3, 64, 0),
        torch.zeros(1, 4, 64, 64),
        torch.zeros(1, 3, 64, 64, dtype=torch.uint8),
        torch.full((1, 3, 64, 64), 1.01),
        torch.full((1, 3, 64, 64), -0.01),
        torch.full((1, 3, 64, 64), float("nan")),
        None,
    ],
    ids=["3-d", "batch-2", "batch-0", "no-columns", "rgba", "uint8", "above", "below", "nan", "none"],
)
@pytest.mark.parametrize("name", ["evc-tiny", "bmshj2018-factorized"])
def test_encode_refuses_bad_pictures(name: str, x):
    with pytest.raises(UsageError, match="picture"):
        pair_of(name, "dense", torch.float32).compiled.encode(x)


@pytest.mark.parametrize("value_dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_encode_takes_any_float_dtype(photo: Tensor, value_dtype: torch.dtype):
    compiled = pair_of("evc-tiny", "dense", torch.float32).compiled
    x = photo[:, :, :64, :64].to(value_dtype)
    assert compiled.encode(x) == compiled.encode(x.float())


def test_pictures_over_the_limit_are_refused(photo: Tensor):
    compiled = pair_of("evc-tiny", "dense", torch.float32).compiled
    data = compiled.encode(photo)
    pixels = photo.shape[2] * photo.shape[3]
    assert compiled.decode(data, max_pixels=pixels).shape == photo.shape
    with pytest.raises(ResourceLimitError, match=str(pixels - 1)):
        compiled.decode(data, max_pixels=pixels - 1)


def test_strict_raises_where_a_kernel_is_missing():
    """There are no float16 kernels for the CPU."""
    with pytest.raises(NoBackendError, match="float16"):
        compile_codec(build("bmshj2018-factorized", "dense"), dtype=torch.float16)


def test_without_strict_the_report_says_what_runs_on_the_reference(photo: Tensor):
    codec = compile_codec(build("bmshj2018-factorized", "dense"), dtype=torch.float16, strict=False)
    assert all(row.backend == "reference" and "float16" in row.reason for row in codec.report.rows)
    x = photo[:, :, :64, :64]
    expected = pair_of("bmshj2018-factorized", "dense", torch.float32).compiled
    assert (codec.decode(codec.encode(x)) - expected.decode(expected.encode(x))).abs().mean() < 0.01


def test_reference_backend_gives_the_same_pictures(photo: Tensor):
    with use_backend("reference"):
        codec = compile_codec(build("evc-tiny", "compact"), dtype=torch.float32)
    assert {row.backend for row in codec.report.rows} == {"reference"}
    x = photo[:, :, :64, :64]
    kernels = pair_of("evc-tiny", "compact", torch.float32).compiled
    assert codec.numerics != kernels.numerics
    assert (codec.decode(codec.encode(x)) - kernels.decode(kernels.encode(x))).abs().mean() < 1e-3


def test_two_threads_share_one_codec_and_run_two(photo: Tensor):
    """Buffers belong to a codec, so its calls take turns; two codecs share nothing."""
    codecs = [pair_of(name, "compact", torch.float32).compiled for name in ("evc-tiny", "mbt2018-mean")]
    crops = [photo[:, :, i : i + 64, : 64 + 16 * i].contiguous() for i in range(4)]
    expected = {(c, i): codecs[c].decode(codecs[c].encode(crops[i])) for c in range(2) for i in range(4)}

    def work(job: tuple[int, int]) -> bool:
        c, i = job
        return torch.equal(codecs[c].decode(codecs[c].encode(crops[i])), expected[job])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, list(expected) * 6))
