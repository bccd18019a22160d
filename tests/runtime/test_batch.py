"""Several pictures and several files at once: the same bytes and pictures as one by one."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sparsecodec import zoo
from sparsecodec.entropy import Container, Window, observing
from sparsecodec.errors import BitstreamError, ModelMismatchError, ResourceLimitError, UsageError
from sparsecodec.runtime import CompiledCodec, compile_codec
from sparsecodec.runtime.batch import check_encodable, runs
from sparsecodec.runtime.memory import decoding_bytes
from sparsecodec.zoo import save

from .conftest import pair_of, portable_codec, portable_model

PORTABLE = ("evc", "bmshj2018-hyperprior", "mbt2018-mean", "bmshj2018-factorized", "mbt2018-mean-vbr")
NATIVE = ("evc-nano", "bmshj2018-factorized", "mbt2018-mean", "cheng2020-anchor")


@pytest.fixture(params=[*(f"portable/{name}" for name in PORTABLE), *NATIVE])
def codec(request: pytest.FixtureRequest) -> CompiledCodec:
    if request.param.startswith("portable/"):
        return portable_codec(request.param.removeprefix("portable/"))
    return pair_of(request.param, "dense", torch.float32).compiled


@pytest.fixture(scope="module")
def evc() -> CompiledCodec:
    return portable_codec("evc")


@pytest.fixture
def pictures(photo: Tensor) -> list[Tensor]:
    """Three of one size, one of another, and one of the first again."""
    sizes = [(40, 70)] * 3 + [(64, 64), (40, 70)]
    return [photo[:, :, 20 * k : 20 * k + h, 30 * k : 30 * k + w] for k, (h, w) in enumerate(sizes)]


def _calls(codec: CompiledCodec, name: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures each call of a method gets; grows as it is called."""
    sizes: list[int] = []
    method = getattr(codec, name)

    def call(first, *rest):
        sizes.append(len(first))
        return method(first, *rest)

    monkeypatch.setattr(codec, name, call)
    return sizes


def test_files_and_pictures_are_those_of_one_by_one(codec, pictures, monkeypatch):
    alone = [codec.encode(x) for x in pictures]
    expected = [codec.decode(blob) for blob in alone]
    encodings, decodings = _calls(codec, "_encode", monkeypatch), _calls(codec, "_decode", monkeypatch)
    blobs = codec.encode_batch(pictures, batch=2)
    assert blobs == alone and encodings == [2, 1, 1, 1]
    decoded = codec.decode_batch(blobs)
    assert decodings == [3, 1, 1]
    assert all(torch.equal(a, b) for a, b in zip(decoded, expected, strict=True))
    assert all(x.untyped_storage().nbytes() == 4 * x.numel() for x in decoded), "one picture holds the memory of all"
    assert len(codec.decode_batch(blobs, batch=2)) == 5 and decodings[3:] == [2, 1, 1, 1]


def test_a_tensor_is_a_batch(evc, photo):
    x = torch.cat([photo[:, :, :64, :64], photo[:, :, 64:128, :64]])
    assert evc.encode_batch(x, 30) == [evc.encode(x[:1], 30), evc.encode(x[1:], 30)]
    assert evc.encode_batch(x[:0]) == [] == evc.encode_batch([])


def test_scalable_codecs_choose_for_each_picture(photo):
    codec = compile_codec(build_scalable(), dtype=torch.float32)
    x = torch.cat([photo[:, :, :64, :64], torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))])
    blobs = codec.encode_batch(x)
    assert blobs == [codec.encode(x[:1]), codec.encode(x[1:])]


def build_scalable():
    from sparsecodec.models import ScalableEVC

    torch.manual_seed(3)
    return ScalableEVC("tiny-s", "tiny", 2).eval().requires_grad_(False)


def test_what_is_decoded_together_takes_no_more_than_one_may(evc, photo, monkeypatch):
    """Pixels count as they are coded, padded to multiples of 64."""
    narrow = photo[:, :, :1, :64].repeat(1, 1, 1, 80)  # 5120 x 1, coded in 5120 x 64
    blobs = [evc.encode(narrow)] * 7
    decodings = _calls(evc, "_decode", monkeypatch)
    evc.decode_batch(blobs, max_pixels=5120)
    assert decodings == [6, 1], "2 x 2^20 pixels hold 6 of 5120 x 64"
    one = decoding_bytes(evc, Window(0, 0, 1, 5120), [Window(0, 0, 1, 5120)])
    evc.decode_batch(blobs[:3], max_memory=2 * one + 1)
    assert decodings[2:] == [2, 1]
    with pytest.raises(ResourceLimitError, match="item 0: decoding 5120 x 1 pixels needs about"):
        evc.decode_batch(blobs, max_memory=one - 1)


def test_a_file_of_another_model_is_found_behind_one_of_ours(evc, photo):
    blob = evc.encode(photo[:, :, :64, :64])
    foreign = dataclasses.replace(Container.from_bytes(blob), model_hash=bytes(8)).to_bytes()
    results = evc.decode_batch([blob, foreign, blob], on_error="status")
    assert [type(result.error) for result in results] == [type(None), ModelMismatchError, type(None)]


def test_surplus_words_are_damage_wherever_they_stand(photo):
    """The checksum is right: only that the coder does not end where its data ends shows it."""
    for family in PORTABLE:
        codec = portable_codec(family)
        blobs = [codec.encode(photo[:, :, :64, 64 * k : 64 * k + 64]) for k in range(3)]
        inside = Container.from_bytes(blobs[1])
        longer = dataclasses.replace(inside, payloads=(inside.payloads[0] + b"ab",)).to_bytes()
        with pytest.raises(BitstreamError):
            codec.decode(longer)
        results = codec.decode_batch([blobs[0], longer, blobs[2]], on_error="status")
        assert [result.error is None for result in results] == [True, False, True], family


def test_no_memory_for_one_is_its_own_failure(evc, photo, monkeypatch):
    blobs = [evc.encode(photo[:, :, :64, :64]), evc.encode(photo[:, :, :64, :128])]
    decode = evc._decode

    def starved(payloads, quality, height, width):
        if width == 64:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        return decode(payloads, quality, height, width)

    monkeypatch.setattr(evc, "_decode", starved)
    results = evc.decode_batch([blobs[0], blobs[0], blobs[1]], on_error="status")
    assert [type(result.error) for result in results] == [ResourceLimitError, ResourceLimitError, type(None)]
    monkeypatch.setattr(evc, "_decode", lambda *_: torch.empty(2) + torch.empty(3))  # no matter of memory
    with pytest.raises(RuntimeError, match="must match"):
        evc.decode_batch(blobs, on_error="status")


def test_anything_that_gives_bytes_is_a_batch(evc, photo):
    blob = evc.encode(photo[:, :, :64, :64])
    assert len(evc.decode_batch(iter([blob, blob]))) == 2


def test_one_damaged_payload_does_not_harm_its_neighbours(evc, photo):
    """The checksum is right, so that what fails is decoding, in the middle of a group."""
    blobs = evc.encode_batch([photo[:, :, 16 * k : 16 * k + 64, :64] for k in range(4)])
    inside = Container.from_bytes(blobs[2])
    (payload,) = inside.payloads
    blobs[2] = dataclasses.replace(inside, payloads=(payload[: len(payload) // 2],)).to_bytes()
    results = evc.decode_batch(blobs, on_error="status")
    assert [result.error is None for result in results] == [True, True, False, True]
    for k in (0, 1, 3):
        assert torch.equal(results[k].picture, evc.decode(blobs[k]))
    with pytest.raises(BitstreamError, match="item 2: "):
        evc.decode_batch(blobs)


def test_of_another_quality_or_in_tiles_is_decoded_apart(evc, photo, monkeypatch):
    x = photo[:, :, :100, :100]
    blobs = [evc.encode(x, 20), evc.encode(x, 20), evc.encode(x, 80), *[evc.encode(x, 80, tile=64)] * 2]
    expected = [evc.decode(blob) for blob in blobs]
    decodings = _calls(evc, "_decode", monkeypatch)
    assert all(torch.equal(a, b) for a, b in zip(evc.decode_batch(blobs), expected, strict=True))
    assert decodings[:2] == [2, 1] and set(decodings[2:]) == {1}


def test_another_process_decodes_a_batch_alone_on_another_backend(tmp_path: Path, photo):
    """Encoded sixteen at a time on two threads; decoded one by one, on one thread, by the reference."""
    save(portable_model("evc"), tmp_path / "model")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        codec = portable_codec("evc")
        x = torch.cat([photo[:, :, 8 * k : 8 * k + 64, 5 * k : 5 * k + 64] for k in range(16)])
        blobs = codec.encode_batch(x)
        here = symbols_of(lambda: codec.decode_batch(blobs))
    finally:
        torch.set_num_threads(threads)
    for k, blob in enumerate(blobs):
        (tmp_path / f"{k:02}.spc").write_bytes(blob)
    program = (
        "import sys, torch, hashlib\n"
        "from pathlib import Path\n"
        "from sparsecodec import zoo\n"
        "from sparsecodec.entropy import observing\n"
        "from sparsecodec.runtime import compile_codec\n"
        "folder = Path(sys.argv[1])\n"
        "torch.set_num_threads(1)\n"
        "codec = compile_codec(zoo.load(folder / 'model'), stream='portable', dtype=torch.float32, strict=False)\n"
        "for path in sorted(folder.glob('*.spc')):\n"
        "    digest = hashlib.sha256()\n"
        "    with observing(lambda symbols: digest.update(symbols.astype('<i4').tobytes())):\n"
        "        codec.decode(path.read_bytes())\n"
        "    print(digest.hexdigest())\n"
    )
    environment = {"SPARSECODEC_BACKEND": "reference", "PYTHONPATH": str(Path(zoo.__file__).parents[2]), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        check=True, env=environment, timeout=600, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.split() == here and len(set(here)) == 16


def symbols_of(decode: Callable[[], object]) -> list[str]:
    """SHA-256 of the symbols of each of 16 pictures that are decoded together: call after call, picture by picture."""
    digests = [hashlib.sha256() for _ in range(16)]
    count = 0

    def note(symbols) -> None:
        nonlocal count
        digests[count % 16].update(symbols.astype("<i4").tobytes())
        count += 1

    with observing(note):
        decode()
    assert count == 16 * 3
    return [digest.hexdigest() for digest in digests]


def test_runs():
    assert [list(run) for run in runs("aaabcc", [2] * 6)] == [[0, 1], [2], [3], [4, 5]]
    assert [list(run) for run in runs([None, None, 1, 1, 1], [9, 9, 0, 9, 9])] == [[0], [1], [2], [3, 4]]
    assert list(runs([], [])) == []


@pytest.mark.parametrize("limit", [0, -1, float("nan"), float("inf"), None])
def test_a_limit_is_a_positive_number(evc, limit):
    with pytest.raises(UsageError, match="max_pixels=.* positive"):
        evc.decode_batch([], max_pixels=limit)


@pytest.mark.parametrize("batch", [0, -1, 1.5, None, True])
def test_a_batch_is_a_number_of_pictures(evc, batch):
    for call in (evc.encode_batch, evc.decode_batch):
        with pytest.raises(UsageError, match="batch=.* at least 1"):
            call([], batch=batch)


def test_a_wrong_picture_is_named_before_anything_is_coded(evc, photo, monkeypatch):
    encodings = _calls(evc, "_encode", monkeypatch)
    good = photo[:, :, :64, :64]
    for wrong, message in ((good[0], "picture 1 "), (good * 2, "picture 1 in "), (good.byte(), "picture 1 of ")):
        with pytest.raises(UsageError, match=message):
            evc.encode_batch([good, wrong])
    assert encodings == []


def test_batches_keep_their_order_and_give_one_status_per_item(codec, photo):
    pictures = [photo[:, :, :h, :w] for h, w in ((64, 64), (30, 80), (1, 1))]
    good = [codec.encode(x) for x in pictures]
    decoded = codec.decode_batch(good)
    assert all(torch.equal(a, codec.decode(b)) for a, b in zip(decoded, good, strict=True))
    foreign = dataclasses.replace(Container.from_bytes(good[1]), model_hash=bytes(8)).to_bytes()
    blobs = [good[0], good[1][:-1], foreign, memoryview(good[2]), b"", good[1]]
    results = codec.decode_batch([*blobs, good[0], good[0]], max_pixels=64 * 64 - 1, on_error="status")
    kinds = [None if result.error is None else type(result.error) for result in results]
    limited = [ResourceLimitError] * 2  # neighbours of one size are decoded together
    assert kinds == [ResourceLimitError, BitstreamError, ModelMismatchError, None, BitstreamError, None, *limited]
    assert [result.picture is None for result in results] == [kind is not None for kind in kinds]
    assert torch.equal(results[3].picture, decoded[2]) and torch.equal(results[5].picture, decoded[1])
    with pytest.raises(BitstreamError, match="item 1: "):
        codec.decode_batch(blobs)
    assert codec.decode_batch([], on_error="status") == []


@pytest.mark.parametrize(
    "arguments", [{"blobs": b"x"}, {"blobs": [1]}, {"blobs": None}, {"blobs": [], "on_error": "ignore"}]
)
def test_batches_of_something_else_are_refused(codec, arguments):
    with pytest.raises(UsageError):
        codec.decode_batch(**arguments)


class _Copies(TorchFunctionMode):
    """Counts what copies values of a tensor to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.count += getattr(function, "__name__", "") in ("__float__", "__bool__", "__int__", "item", "tolist")
        return function(*args, **(kwargs or {}))


def test_values_are_checked_with_one_copy_to_the_host():
    """Each would wait for a GPU."""
    with _Copies() as copies:
        check_encodable(torch.tensor([0.0, 1.0]).expand(1, 3, 4, 2), "picture")
    assert copies.count == 1
    for value in (-0.5, 1.5, float("nan")):
        with pytest.raises(UsageError, match="needs \\[0, 1\\], no NaN"):
            check_encodable(torch.tensor([0.0, value, 1.0]).expand(1, 3, 1, 3), "picture")


@pytest.mark.parametrize(
    ("x", "reason"),
    [(torch.empty(1, 3, 8, 8, device="meta"), "without values"), (torch.zeros(1, 3, 8, 8).to_sparse(), "sparse_coo")],
)
def test_pictures_without_a_value_for_each_pixel_are_refused(x, reason):
    with pytest.raises(UsageError, match=f"{reason} .needs a dense tensor with values"):
        check_encodable(x, "picture")


def test_the_steps_of_a_codec_are_read_once(photo):
    """When it is compiled: in an encode reading them would wait for a GPU."""
    codec = compile_codec(zoo.load("evc-tiny"), dtype=torch.float32)
    x = photo[:, :, :64, :64]
    blob = codec.encode(x, 30)
    codec._model.q_scale.fill_(float("nan"))
    assert codec.encode(x, 30) == blob
