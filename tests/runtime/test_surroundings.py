"""Codecs do the same whatever state of torch the caller is in, and what they return is the caller's."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsecodec.entropy.tables import compressai_scales
from sparsecodec.errors import UsageError
from sparsecodec.models import create
from sparsecodec.ops import _registry as registry
from sparsecodec.runtime import CompiledCodec, compile_codec
from sparsecodec.runtime.numerics import default_dtype
from sparsecodec.runtime.video import CompiledVideo

from ..toy_video import moving
from .conftest import pair_of, portable_codec

NAMES = ("evc-nano", "bmshj2018-factorized", "mbt2018-mean", "cheng2020-anchor", "portable")


@contextmanager
def doubles() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.fixture(params=["autocast", "default device", "default dtype", "inference mode"])
def surroundings(request: pytest.FixtureRequest) -> AbstractContextManager[Any]:
    return {
        "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
        "default device": lambda: torch.device("meta"),
        "default dtype": doubles,
        "inference mode": torch.inference_mode,
    }[request.param]()


def compiled(name: str) -> CompiledCodec:
    return portable_codec("mbt2018-mean") if name == "portable" else pair_of(name, "dense", torch.float32).compiled


def calls(name: str, x: Tensor) -> dict[str, Callable[[], Any]]:
    """What a user calls, each with what came before it as it is outside."""
    codec = compiled(name)
    blob = codec.encode(x)
    found = {
        "encode": lambda: codec.encode(x),
        "encode_batch": lambda: codec.encode_batch([x, x]),
        "decode": lambda: codec.decode(blob),
        "decode_batch": lambda: codec.decode_batch([blob, blob]),
    }
    if name == "evc-nano":
        coded = codec.compress(x, 0.7)["bit_stream"]
        found["compress"] = lambda: codec.compress(x, 0.7)["bit_stream"]
        found["decompress"] = lambda: codec.decompress(coded, 64, 64, 0.7)["x_hat"]
    elif name != "portable":
        coded = codec.compress(x)
        found["compress"] = lambda: codec.compress(x)["strings"]
        found["decompress"] = lambda: codec.decompress(coded["strings"], coded["shape"])["x_hat"]
    return found


def same(a: Any, b: Any) -> bool:
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, Tensor) else a == b


@pytest.mark.parametrize("name", NAMES)
def test_calls_do_the_same_in_any_surroundings(name, surroundings, photo):
    found = calls(name, photo[:, :, :64, :64])
    expected = {call: run() for call, run in found.items()}
    with surroundings:
        within = {call: run() for call, run in found.items()}
    assert [call for call in found if not same(within[call], expected[call])] == []


@pytest.mark.parametrize("name", ["evc-nano", "cheng2020-anchor"])
def test_compiling_does_the_same_in_any_surroundings(name, surroundings, photo):
    x, model = photo[:, :, :64, :64], pair_of(name, "dense", torch.float32).original
    expected = compiled(name).encode(x)
    with surroundings:
        codec = compile_codec(model, dtype=torch.float32)
    assert codec.encode(x) == expected


@cache
def compiled_video() -> CompiledVideo:
    return compile_codec(create("dcvc-rt-tiny"), dtype=torch.float32)


def test_clips_do_the_same_in_any_surroundings(surroundings):
    codec, frames = compiled_video(), moving(3, 64, 64)

    def coded() -> tuple[list[bytes], list[Tensor]]:
        payload, state = codec.intra_encode(codec.padded(frames[0]), 30)
        following, after = codec.inter_encode(codec.padded(frames[1]), state, 30, 1)
        pictures = [codec.intra_decode(payload, 64, 64, 30)[0], codec.inter_decode(following, state, 64, 64, 30, 1)[0]]
        return [payload, following], [*pictures, *after.tensors()]

    payloads, tensors = coded()
    with surroundings:
        within, tensors_within = coded()
    assert within == payloads and all(map(torch.equal, tensors_within, tensors))


def test_tables_do_not_depend_on_the_default_dtype():
    expected = compressai_scales()
    with doubles():
        assert compressai_scales() == expected


@pytest.mark.parametrize("name", NAMES)
def test_pictures_are_plain_tensors(name, photo):
    for call, run in calls(name, photo[:, :, :64, :64]).items():
        if not call.startswith("dec"):
            continue
        found = run()
        for picture in found if isinstance(found, list) else [found]:
            weight = torch.ones((), requires_grad=True)
            (picture * weight).sum().backward()
            assert weight.grad == picture.sum()
            kept = picture.clone()
            picture.mul_(0)
            assert same(run()[0] if isinstance(found, list) else run(), kept), call


def test_wrapped_by_torch_compile_is_the_same_codec(photo):
    pair = pair_of("evc-nano", "dense", torch.float32)
    codec = compile_codec(torch.compile(pair.original), dtype=torch.float32)
    assert codec.model_hash == pair.compiled.model_hash
    assert codec.decode(pair.compiled.encode(photo)).shape == photo.shape


def test_a_model_without_weights_is_refused():
    with pytest.raises(UsageError, match=r"EVC: \S+ is on the meta device"):
        compile_codec(copy.deepcopy(create("evc-tiny")).to("meta"))
    with pytest.raises(UsageError, match="Linear: weight is on the meta device"):
        compile_codec(nn.Linear(2, 2, device="meta"))


def test_old_gpus_have_no_triton_kernels_and_no_bfloat16(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    why_unavailable = registry.why_unavailable.__wrapped__  # remembers nothing
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: ((6, 1), (7, 5))[device])
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert why_unavailable("triton") == "the newest CUDA device has compute capability 7.5 (needs 8.0)"
    assert default_dtype(torch.device("cuda")) == torch.float16
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: ((6, 1), (8, 0))[device])
    assert why_unavailable("triton") is None
