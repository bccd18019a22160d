"""Eight predicted frames through objects of DCVC-DC and -FM, whose calls differ in their arguments only."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sparsecodec.runtime import compile_codec

SIZE = 64
STATE = ("ref_frame", "ref_feature", "ref_mv_feature", "ref_y", "ref_mv_y")
State = dict[str, Any]
Compress = Callable[[Any, Tensor, State, int], tuple[bytes, State]]  # model, frame, state, number of the frame
Decompress = Callable[[Any, bytes, State, int], State]


def panned(photo: Tensor) -> list[Tensor]:
    """A first frame and eight after it."""
    return [photo[:, :, 2 * t : 2 * t + SIZE, 3 * t : 3 * t + SIZE] for t in range(9)]


def started(frame: Tensor) -> State:
    return dict.fromkeys(STATE) | {"ref_frame": frame}


def recorded(model: Any, compress: Compress, frames: list[Tensor]) -> list[tuple[bytes, State]]:
    """Payload of each predicted frame, and the state after it."""
    coded, dpb = [], started(frames[0])
    for index, frame in enumerate(frames[1:], 1):
        payload, dpb = compress(model, frame, dpb, index)
        coded.append((payload, dpb))
    return coded


def gives_what_was_recorded(
    codec: Any, compress: Compress, decompress: Decompress, frames: list[Tensor], coded: list[tuple[bytes, State]]
) -> None:
    """Bytes, and the state after each frame on both ends."""
    dpb = started(frames[0])
    for index, (frame, (payload, state)) in enumerate(zip(frames[1:], coded, strict=True), 1):
        again, sent = compress(codec, frame, dpb, index)
        assert again == payload, index
        dpb = decompress(codec, payload, dpb, index)
        assert all(torch.equal(sent[name], state[name]) for name in STATE), index
        assert all(torch.equal(dpb[name], state[name]) for name in STATE), index


def both_ends_agree_on_kernels(
    model: Any, compress: Compress, decompress: Decompress, frames: list[Tensor], dtype: torch.dtype
) -> None:
    inter = compile_codec(model, dtype=dtype)
    inter.update(force=True)
    dpb = started(frames[0])
    for index, frame in enumerate(frames[1:], 1):
        payload, sent = compress(inter, frame, dpb, index)
        dpb = decompress(inter, payload, dpb, index)
        assert all(torch.equal(sent[name], dpb[name]) for name in STATE), index


def transforms_compute_in_16_bits(intra: Any, inter: Any, round_trip: Callable[[Any], tuple[Tensor, Tensor]]) -> None:
    """No network of motion and of the tables' rows does. `round_trip`: a picture as it was sent and received."""
    for model in (intra, inter):
        codec = compile_codec(model, dtype=torch.bfloat16)
        assert all(codec.get_submodule(name) for name in codec.TRANSFORMS)
        narrow = {path for path, part in codec.named_modules() if getattr(part, "dtype", None) == torch.bfloat16}
        assert {name.partition(".")[0] for name in codec.TRANSFORMS} == {path.partition(".")[0] for path in narrow}
        assert not [path for path in narrow if re.search("_y_|mv_decoder|hyper_dec|hyper_prior_decoder", path)]
    sent, received = round_trip(compile_codec(intra, dtype=torch.bfloat16))
    assert torch.equal(sent, received) and not torch.equal(sent, round_trip(compile_codec(intra))[0])


def half_changes_nothing(
    model: Any, compress: Compress, decompress: Decompress, frames: list[Tensor], when: str
) -> None:
    """Both ends, given halves, do what they do in float32, wherever (`when`) a script calls ``half()``.

    The weights are to be such that halves hold them, too.
    """
    original = when == "original"
    expected = compile_codec(model, original=original)
    if when == "before":
        model.half()
    ends = [compile_codec(model, original=original) for _ in range(2)]
    model.float()
    for codec in (expected, *ends):
        codec.update(force=True)
    if when == "used":
        for codec in ends:
            recorded(codec, compress, frames[:2])
    for codec in ends:
        codec.half()
    halves = [frame.half() for frame in frames]
    coded = recorded(expected, compress, [frame.float() for frame in halves])
    sent = received = started(halves[0])
    for index, (frame, (payload, state)) in enumerate(zip(halves[1:], coded, strict=True), 1):
        again, sent = compress(ends[0], frame, sent, index)
        assert again == payload, index
        received = decompress(ends[1], payload, received, index)
        assert all(torch.equal(sent[name], state[name]) for name in STATE), index
        assert all(torch.equal(received[name], state[name]) for name in STATE), index
