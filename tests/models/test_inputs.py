"""What no codec of ours can code rightly is refused with an error of ours, by every family and in both directions."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsecodec.entropy import Decoder, Decoder32, dcvc_gaussian16_tables, decode
from sparsecodec.entropy.lanes import LaneDecoder
from sparsecodec.errors import BitstreamError, ModelMismatchError, ResourceLimitError, SparseCodecError, UsageError
from sparsecodec.models import DCVC, EVC, FVC, DCVCHEMImage, DCVCHEMVideo, DCVCRTImage, DCVCRTVideo
from sparsecodec.models.dcvc_hem_image import HEM_IMAGE_TINY
from sparsecodec.models.dcvc_hem_video import HEM_VIDEO_TINY
from sparsecodec.models.dcvc_rt_image import RT_IMAGE_TINY
from sparsecodec.models.dcvc_rt_video import RT_VIDEO_TINY
from sparsecodec.models.foreign import FAMILIES
from sparsecodec.models.fvc import FVCState
from sparsecodec.nn.rt_state import RTState

SPS = {"height": 64, "width": 64, "ec_part": 0}


class Family:
    """One model, called alike whatever its family: a frame, what came before it, and the payload.

    Args:
        model: in eval mode.
        encode: (x, state) -> (payload, picture or feature as the decoder will have it).
        decode: (payload, state) -> the same.
        state: what a frame is coded with; None for images.
    """

    def __init__(self, model: nn.Module, encode: Callable, decode: Callable, state: Any = None) -> None:
        self.model, self._encode, self._decode, self.state = model, encode, decode, state

    def encode(self, x: Any, **changed: Any) -> tuple[Any, Tensor]:
        return self._encode(changed.get("model", self.model), x, changed.get("state", self.state))

    def decode(self, payload: Any, **changed: Any) -> Tensor:
        return self._decode(changed.get("model", self.model), payload, changed.get("state", self.state))


def _evc(model: nn.Module, x: Any, state: None) -> tuple[bytes, Tensor]:
    coded = model.compress(x, 1.0)
    return coded["bit_stream"], coded["x_hat"]


def _rt_image(model: nn.Module, x: Any, state: None) -> tuple[bytes, Tensor]:
    coded = model.compress(x, 32)
    return coded["bit_stream"], coded["x_hat"]


def _rt_video(model: nn.Module, x: Any, state: Any) -> tuple[bytes, Tensor]:
    payload, after = model.compress_frame(x, state, 32)
    return payload, after.feature


def _hem(model: nn.Module, x: Any, state: Any) -> tuple[bytes, Tensor]:
    coded = model.compress(x, state, 1.0, 1.0)
    return coded["bit_stream"], coded["dbp"]["ref_frame"]


def _dcvc(model: nn.Module, x: Any, state: Any) -> tuple[tuple[bytes, ...], Tensor]:
    coded = model.compress(state, x)
    return tuple(coded[f"{name}_string"] for name in ("mv_y", "mv_z", "y", "z")), coded["recon_image"]


def _fvc(model: nn.Module, x: Any, state: Any) -> tuple[bytes, Tensor]:
    coded = model.compress(x, state)
    return coded["bit_stream"], coded["x_hat"]


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def families(x: Tensor) -> dict[str, Family]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        evc, hem_image, hem = EVC("nano", "nano"), DCVCHEMImage(HEM_IMAGE_TINY), DCVCHEMVideo(HEM_VIDEO_TINY)
        rt_image, rt, dcvc, fvc = DCVCRTImage(RT_IMAGE_TINY), DCVCRTVideo(RT_VIDEO_TINY), DCVC("tiny"), FVC("tiny")
    for model in (evc, hem_image, hem, rt_image, rt, dcvc, fvc):
        model.eval().requires_grad_(False)
    rt_image.update()
    rt.update()

    def image(model: nn.Module, payload: Any, state: None) -> Tensor:
        return model.decompress(payload, 64, 64, 1.0)["x_hat"]

    def rt_video(model: nn.Module, payload: Any, state: Any) -> Tensor:
        return model.decompress_frame(payload, state, SPS, 32)[1].feature

    def hem_video(model: nn.Module, payload: Any, state: Any) -> Tensor:
        return model.decompress(state, payload, 64, 64, 1.0, 1.0)["dpb"]["ref_frame"]

    def dcvc_video(model: nn.Module, payload: Any, state: Any) -> Tensor:
        strings = payload if isinstance(payload, tuple) else (payload,) * 4
        return model.decompress(state, *strings, 64, 64)

    return {
        "evc": Family(evc, _evc, image),
        "hem-image": Family(hem_image, _evc, image),
        "rt-image": Family(rt_image, _rt_image, lambda m, payload, _: m.decompress(payload, SPS, 32)["x_hat"]),
        "rt-video": Family(rt, _rt_video, rt_video, rt.start(x)),
        "rt-feature": Family(rt, _rt_video, rt_video, rt.compress_frame(x, rt.start(x), 32)[1]),
        "hem-video": Family(hem, _hem, hem_video, hem.compress(x, hem.dpb_of(hem.start(x)), 1.0, 1.0)["dbp"]),
        "dcvc": Family(dcvc, _dcvc, dcvc_video, x),
        "fvc": Family(fvc, _fvc, lambda m, payload, state: m.decompress(payload, state)["x_hat"], fvc.start(x)),
    }


NAMES = ("evc", "hem-image", "rt-image", "rt-video", "rt-feature", "hem-video", "dcvc", "fvc")
VIDEO = NAMES[3:]


def _with(x: Tensor, value: float) -> Tensor:
    return x.index_put((torch.tensor(0), torch.tensor(1), torch.tensor(5), torch.tensor(9)), torch.tensor(value))


BAD_PICTURES: dict[str, Callable[[Tensor], Any]] = {
    "nan": lambda x: _with(x, float("nan")),
    "inf": lambda x: _with(x, float("inf")),
    "-inf": lambda x: _with(x, -float("inf")),
    "float64": lambda x: x.double(),
    "float16": lambda x: x.half(),
    "uint8": lambda x: (255 * x).byte(),
    "batch 0": lambda x: x[:0],
    "batch 2": lambda x: x.repeat(2, 1, 1, 1),
    "no batch": lambda x: x[0],
    "grey": lambda x: x[:, :1],
    "odd width": lambda x: x[..., :63],
    "other size": lambda x: x.repeat(1, 1, 1, 2),
    "numpy": lambda x: x.numpy(),
    "none": lambda x: None,
}


@pytest.mark.parametrize("kind", BAD_PICTURES)
@pytest.mark.parametrize("name", NAMES)
def test_a_picture_that_cannot_be_coded_is_refused(name: str, kind: str, families: dict[str, Family], x: Tensor):
    if kind == "other size" and families[name].state is None:
        return  # an image has any size
    with pytest.raises(UsageError):
        families[name].encode(BAD_PICTURES[kind](x))


@pytest.mark.parametrize("name", NAMES)
def test_strides_do_not_change_a_byte(name: str, families: dict[str, Family], x: Tensor):
    family = families[name]
    payload, made = family.encode(x)
    for same in (
        x.contiguous(memory_format=torch.channels_last),
        x.transpose(2, 3).contiguous().transpose(2, 3),
        torch.cat([x, x], 3)[..., :64],
    ):
        assert torch.equal(same, x)
        assert family.encode(same)[0] == payload
    assert torch.equal(family.decode(payload), made)


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_and_training_mode_code_alike(name: str, families: dict[str, Family], x: Tensor):
    family = families[name]
    payload, made = family.encode(x)
    copied = copy.deepcopy(family.model).train()
    assert family.encode(x, model=copied)[0] == payload
    assert torch.equal(family.decode(payload, model=copied), made)


@pytest.mark.parametrize("name", ["rt-feature", "hem-video", "fvc"])
def test_threads_and_turns_do_not_meet(name: str, families: dict[str, Family], x: Tensor):
    family = families[name]
    payload, made = family.encode(x)
    with pytest.raises(UsageError):
        family.encode(None)  # an error leaves nothing behind
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda i: family.encode(x)[0] if i % 2 else family.decode(payload), range(8)))
    assert all(result == payload if i % 2 else torch.equal(result, made) for i, result in enumerate(results))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_another_precision_codes_exactly_or_is_refused(
    name: str, dtype: torch.dtype, families: dict[str, Family], x: Tensor
):
    family = families[name]
    if name == "dcvc" and dtype != torch.float64:
        return  # position by position in halves takes a minute on a CPU
    model = copy.deepcopy(family.model).to(dtype)
    state = _mapped(family.state, lambda value: value.to(dtype))
    if name in ("evc", "hem-image", "hem-video", "fvc"):
        with pytest.raises(UsageError, match="float32"):
            family.encode(x.to(dtype), model=model, state=state)
        with pytest.raises(UsageError, match="float32"):
            family.decode(family.encode(x)[0], model=model, state=state)
        return
    payload, made = family.encode(x.to(dtype), model=model, state=state)
    assert made.dtype == dtype
    assert torch.equal(family.decode(payload, model=model, state=state), made)


def _mapped(state: Any, change: Callable[[Tensor], Any]) -> Any:
    """`state` with each of its tensors changed."""
    if isinstance(state, Tensor):
        return change(state)
    if isinstance(state, dict):
        return {key: None if value is None else change(value) for key, value in state.items()}
    if isinstance(state, FVCState):
        return FVCState(tuple(map(change, state.features)))
    if isinstance(state, RTState):
        return RTState(*(None if value is None else change(value) for value in (state.frame, state.feature)))
    return state


BAD_STATES: dict[str, Callable[[Any], Any]] = {
    "none": lambda state: None,
    "a number": lambda state: 3,
    "nan": lambda state: _mapped(state, lambda value: value * float("nan")),
    "float64": lambda state: _mapped(state, Tensor.double),
    "whole numbers": lambda state: _mapped(state, Tensor.int),
    "two frames": lambda state: _mapped(state, lambda value: value.repeat(2, 1, 1, 1)),
    "twice as wide": lambda state: _mapped(state, lambda value: value.repeat(1, 1, 1, 2)),
    "one position": lambda state: _mapped(state, lambda value: value[..., :1, :1]),
    "other channels": lambda state: _mapped(state, lambda value: value.repeat(1, 2, 1, 1)),
    "numpy": lambda state: _mapped(state, lambda value: value.numpy()),
}


@pytest.mark.parametrize("kind", BAD_STATES)
@pytest.mark.parametrize("name", VIDEO)
def test_a_state_of_something_else_is_refused(name: str, kind: str, families: dict[str, Family], x: Tensor):
    family = families[name]
    payload, _ = family.encode(x)
    state = BAD_STATES[kind](family.state)
    with pytest.raises(UsageError):
        family.encode(x, state=state)
    # A state says by itself how large a frame of FVC is: of another size it is some other frame's.
    expected = (UsageError, BitstreamError) if (name, kind) == ("fvc", "twice as wide") else UsageError
    with pytest.raises(expected):
        family.decode(payload, state=state)


def test_states_are_refused_one_part_at_a_time(families: dict[str, Family], x: Tensor):
    hem, fvc = families["hem-video"], families["fvc"]
    for key in hem.state:
        with pytest.raises(UsageError, match=key):
            hem.encode(x, state={name: value for name, value in hem.state.items() if name != key})
        with pytest.raises(UsageError, match="picture" if key == "ref_frame" else key):
            hem.encode(x, state=hem.state | {key: torch.rand(1, 5, 4, 4)})
    for features in ((), fvc.state.features * 2):
        with pytest.raises(UsageError, match="frames"):
            fvc.encode(x, state=replace(fvc.state, features=features))
        with pytest.raises(UsageError, match="frames"):
            fvc.decode(b"", state=replace(fvc.state, features=features))


@pytest.mark.parametrize("name", NAMES)
def test_damaged_payloads_are_errors_of_ours(name: str, families: dict[str, Family], x: Tensor):
    family = families[name]
    payload, made = family.encode(x)
    strings = payload if isinstance(payload, tuple) else (payload,)
    places = 3 if name in ("dcvc", "hem-video") else 12  # those take long
    for part, string in enumerate(strings):
        cuts = [string[:size] for size in range(0, len(string), max(len(string) // places, 1))]
        for damaged in (*cuts, string + b"\0", string + bytes(4), string[4:], bytes(len(string))):
            changed = (*strings[:part], damaged, *strings[part + 1 :])
            with pytest.raises(BitstreamError):
                family.decode(changed if isinstance(payload, tuple) else changed[0])
        step = max(len(string) // places, 1)
        for position in range(0, len(string), step):
            mutated = bytes(b ^ (0x5A if i == position else 0) for i, b in enumerate(string))
            changed = (*strings[:part], mutated, *strings[part + 1 :])
            try:  # a native payload has no checksum: a change may decode to some picture, but only of the right size
                found = family.decode(changed if isinstance(payload, tuple) else changed[0])
            except SparseCodecError as error:
                assert isinstance(error, BitstreamError | ModelMismatchError)
            else:
                assert found.shape == made.shape
    for foreign in (None, "text", 7):
        with pytest.raises(UsageError, match="(payload|data): .*needs"):
            family.decode(foreign)


def test_payloads_are_bytes_in_any_wrapping(families: dict[str, Family], x: Tensor):
    family = families["rt-image"]
    payload, made = family.encode(x)
    for same in (bytearray(payload), memoryview(payload), memoryview(b"ab" + payload)[2:]):
        assert torch.equal(family.decode(same), made)
    tables, rows = dcvc_gaussian16_tables(), torch.zeros(1, dtype=torch.int16)
    for refuse in (
        lambda: Decoder("a"),
        lambda: Decoder32("a"),
        lambda: LaneDecoder("a", 1),
        lambda: decode("a", rows, tables),
        lambda: decode(memoryview(bytes(16))[::2], rows, tables),
    ):
        with pytest.raises(UsageError, match="(payload|data): .*needs"):
            refuse()


@pytest.mark.parametrize("qp", [32.0, 32.5, float("nan"), -1, 64, True, "3", None, [3], torch.tensor([1, 2])])
def test_qualities_of_rt_are_whole_numbers(qp: Any, families: dict[str, Family], x: Tensor):
    image, video = families["rt-image"], families["rt-feature"]
    payload = image.encode(x)[0]
    wide = 72 if isinstance(qp, int) and qp == 64 else qp  # predicted frames have more
    for refuse in (
        lambda: image.model.compress(x, qp),
        lambda: image.model.decompress(payload, SPS, qp),
        lambda: image.model(x, qp),
        lambda: video.model.compress_frame(x, video.state, wide),
        lambda: video.model.decompress_frame(payload, video.state, SPS, wide),
        lambda: video.model.shift_qp(qp, 0),
    ):
        with pytest.raises(UsageError, match="qp="):
            refuse()
    assert image.model.compress(x, torch.tensor(32))["bit_stream"] == payload


@pytest.mark.parametrize("changed", [{"height": 0}, {"height": 64.0}, {"width": "64"}, {"ec_part": 2}])
def test_parameter_sets_of_rt_are_checked(changed: dict[str, Any], families: dict[str, Family], x: Tensor):
    model = families["rt-image"].model
    payload = families["rt-image"].encode(x)[0]
    with pytest.raises(UsageError):
        model.decompress(payload, SPS | changed, 32)
    for name in SPS:
        with pytest.raises(UsageError, match="needs height, width and ec_part"):
            model.decompress(payload, {key: value for key, value in SPS.items() if key != name}, 32)


def test_sizes_from_files_are_bounded(families: dict[str, Family], x: Tensor):
    evc, rt = families["evc"], families["rt-image"]
    with pytest.raises(ResourceLimitError):
        rt.model.decompress(rt.encode(x)[0], SPS | {"height": 2**30, "width": 2**30}, 32)
    with pytest.raises(ResourceLimitError):
        evc.model.decompress(evc.encode(x)[0], 2**20, 2**20, 1.0)


@pytest.mark.parametrize("name", ["evc", "hem-image"])
def test_steps_are_positive_numbers(name: str, families: dict[str, Family], x: Tensor):
    model = families[name].model
    payload = model.compress(x, torch.tensor(1.0))["bit_stream"]
    assert payload == model.compress(x, 1)["bit_stream"]
    for step in (0, -1.0, float("nan"), float("inf"), "1", None, torch.tensor([1.0, 2.0])):
        with pytest.raises(UsageError, match="q_scale"):
            model.compress(x, step)
        with pytest.raises(UsageError, match="q_scale"):
            model.decompress(payload, 64, 64, step)


@pytest.mark.parametrize(
    "rate", [[-1], [4], [True], [0, 1], [0.0], [-1.0], [float("nan")], [float("inf")], [1.0, 2.0, 3.0]]
)
def test_rates_of_hem_are_anchors_or_positive_steps(rate: list, families: dict[str, Family], x: Tensor):
    with pytest.raises(UsageError, match="rate="):
        families["hem-image"].model(x, torch.tensor(rate))
    video = families["hem-video"].model
    steps = torch.tensor(rate)
    with pytest.raises(UsageError, match="rate="):
        video(x, video.start(x), torch.stack([steps, steps], 1) if steps.is_floating_point() else steps)


def test_other_weights_need_other_tables(families: dict[str, Family], x: Tensor):
    model = copy.deepcopy(families["rt-image"].model)
    payload = model.compress(x, 32)["bit_stream"]
    model.load_state_dict({key: value + ("bit_estimator" in key) for key, value in model.state_dict().items()})
    for refuse in (lambda: model.compress(x, 32), lambda: model.decompress(payload, SPS, 32)):
        with pytest.raises(UsageError, match=r"call update\(\)"):
            refuse()
    model.update()
    assert model.compress(x, 32)["bit_stream"] != payload


@pytest.mark.parametrize("family", FAMILIES)
def test_incomplete_weights_are_named(family: type):
    with pytest.raises(UsageError, match="the weights have no"):
        family.from_state_dict({})
