"""Compiled codecs on a GPU: against their own encoder, against plain torch, captured, in threads."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F

from sparsecodec import ModelMismatchError, load
from sparsecodec._compat import import_compressai
from sparsecodec.entropy import LaneEncoder, evc_gaussian_tables
from sparsecodec.entropy.lanes_cuda import CudaLaneDecoder, lane_words
from sparsecodec.errors import UsageError
from sparsecodec.runtime import compile_codec
from sparsecodec.runtime.adapters import portable

from .conftest import build

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
NAMES = ["evc-tiny", "bmshj2018-factorized", "bmshj2018-hyperprior", "mbt2018-mean"]


def pictures(count: int, height: int = 128, width: int = 192) -> torch.Tensor:
    coarse = torch.rand(count, 3, height // 8, width // 8, generator=torch.Generator().manual_seed(7))
    return F.interpolate(coarse, (height, width), mode="bilinear").cuda()


def model_of(name: str, variant: str = "dense") -> torch.nn.Module:
    if name != "evc-tiny":
        try:
            import_compressai()
        except UsageError as error:
            pytest.skip(str(error))
    return copy.deepcopy(build(name, variant))


def deviation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).square().mean().sqrt())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("variant", ["dense", "compact"])
@pytest.mark.parametrize("name", NAMES)
def test_decodes_what_it_encodes(name, variant, dtype):
    codec = compile_codec(model_of(name, variant), "cuda", dtype)
    for x in pictures(3).split(1):
        blob = codec.encode(x)
        first, second = codec.decode(blob), codec.decode(blob)
        assert torch.equal(first, second)  # eager or captured, the same picture
        assert codec.encode(x) == blob
    assert codec._executor.refusals == []
    assert "CUDA graphs held" in str(codec.report)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("variant", ["dense", "compact"])
def test_stays_near_plain_torch(variant, dtype):
    model = model_of("evc-tiny", variant)
    codec, reference = compile_codec(model, "cuda", dtype), compile_codec(model, "cuda", torch.float32)
    x = pictures(1)
    stream = codec.compress(x, 1.0)
    exact = reference.decompress(stream["bit_stream"], *x.shape[2:], 1.0)["x_hat"]
    y_hat = torch.randn(1, model.latent_channels, 8, 12, generator=torch.Generator().manual_seed(1)).cuda()
    with torch.inference_mode():
        plain = model.dec.cuda()(y_hat)
        half = copy.deepcopy(model.dec).to(dtype)(y_hat.to(dtype)).float()
        ours = codec._transforms["dec"](y_hat).float()
    assert deviation(ours, plain) <= 2 * deviation(half, plain)
    assert deviation(stream["x_hat"], exact) < 0.02


def test_a_batch_is_decoded_as_its_pictures_are():
    codec = compile_codec(model_of("mbt2018-mean"), "cuda", torch.float16)
    x = pictures(3)
    together = codec.decompress(**codec.compress(x))["x_hat"]
    apart = [codec.decompress(**codec.compress(one))["x_hat"] for one in x.split(1)]
    assert deviation(together, torch.cat(apart)) < 2e-3


def test_threads_do_not_meet():
    codecs = [compile_codec(model_of("evc-tiny", variant), "cuda", torch.float16) for variant in ("dense", "compact")]
    x = pictures(1)
    blobs = [codec.encode(x) for codec in codecs]
    expected = [codec.decode(blob) for codec, blob in zip(codecs, blobs, strict=True)]

    def work(number: int) -> bool:
        return torch.equal(codecs[number % 2].decode(blobs[number % 2]), expected[number % 2])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(40)))


def test_files_of_other_numerics_are_refused():
    model = model_of("evc-tiny")
    on_cpu, on_gpu = compile_codec(model, "cpu"), compile_codec(model, "cuda")
    assert on_cpu.numerics.tag != on_gpu.numerics.tag
    with pytest.raises(ModelMismatchError, match="numerics"):
        on_gpu.decode(on_cpu.encode(pictures(1).cpu()))


def test_lanes_decode_on_the_device():
    total, tables = 2**20 + 77, evc_gaussian_tables()  # two groups of 32 lanes
    generator = torch.Generator().manual_seed(0)
    indexes = torch.randint(0, tables.rows, (total,), generator=generator).short()
    symbols = torch.randint(-60, 61, (total,), generator=generator).int()
    encoder = LaneEncoder(total)
    for part in (slice(0, 1000), slice(1000, total)):
        encoder.push(symbols[part], indexes[part], tables)
    decoder = CudaLaneDecoder(lane_words([encoder.finish()], total).to(torch.device("cuda")), total)
    decoded = [decoder.decode(indexes[part].cuda(), tables) for part in (slice(0, 1000), slice(1000, total))]
    decoder.finish()
    assert torch.equal(torch.cat(decoded).cpu(), symbols)


def test_portable_pictures_decode_in_one_graph(monkeypatch):
    codec = compile_codec(load("evc-tiny-sparse-portable"), "cuda", stream="portable")
    blobs = [codec.encode(x) for x in pictures(3).split(1)]
    with monkeypatch.context() as patch:
        patch.setattr(portable, "decodes_on", lambda device: False)
        expected, together = [codec.decode(blob) for blob in blobs], codec.decode_batch(blobs)
    stretches = codec._executor.captures
    for blob, x_hat in zip(blobs, expected, strict=True):
        assert torch.equal(codec.decode(blob), x_hat)
    assert all(map(torch.equal, codec.decode_batch(blobs), together))
    assert (codec._executor.captures - stretches, codec._executor.refusals) == (2, [])
