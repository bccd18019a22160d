"""DCVC-DC: the published objects with compiled networks code as before, and both ends of them agree."""

from __future__ import annotations

import pytest
import torch

from sparsecodec.runtime import compile_codec

from .eight_frames import (
    SIZE,
    STATE,
    both_ends_agree_on_kernels,
    gives_what_was_recorded,
    half_changes_nothing,
    panned,
    recorded,
    started,
    transforms_compute_in_16_bits,
)

FAMILY = "dc"


@pytest.fixture(scope="module")
def objects(official):
    torch.manual_seed(0)
    found = official("models.image_model").IntraNoAR(), official("models.video_model").DMC()
    for model in found:
        model.half().float()  # so that halves hold the weights
        model.load_state_dict(model.state_dict())  # makes the table of steps that coding reads
        model.eval().requires_grad_(False)
        model.update(force=True)
    return found


def test_two_frames_through_compiled_objects(objects, photo):
    first, second = photo[:, :, :SIZE, :SIZE], photo[:, :, 2 : SIZE + 2, 3 : SIZE + 3]
    intra, inter = map(compile_codec, objects)
    expected = objects[0].compress(first, True, 2)
    coded = intra.compress(first, True, 2)
    torch.testing.assert_close(coded["x_hat"], expected["x_hat"], atol=1e-4, rtol=0)
    x_hat = intra.decompress(coded["bit_stream"], SIZE, SIZE, True, 2)["x_hat"]
    assert torch.equal(x_hat, coded["x_hat"])

    dpb = started(x_hat)
    sent = inter.compress(second, dpb, True, 2, 1)
    received = inter.decompress(dpb, sent["bit_stream"], SIZE, SIZE, True, 2, 1)
    for name in STATE[1:]:
        assert torch.equal(sent["dpb"][name], received["dpb"][name]), name
    rows = inter.report.rows
    assert sum(row.macs for row in rows if row.backend == "cpu") > 0.99 * sum(row.macs for row in rows) > 0
    assert {row.transform for row in rows if "cannot be traced" in row.reason} == {"optic_flow"}


def _compress(model, frame, dpb, index):
    coded = model.compress(frame, dpb, True, 2, index % 4)
    return coded["bit_stream"], {**coded["dpb"], "ref_frame": coded["dpb"]["ref_frame"].clamp(0, 1)}


def _decompress(model, payload, dpb, index):
    return model.decompress(dpb, payload, SIZE, SIZE, True, 2, index % 4)["dpb"]


def test_its_own_layers_write_the_published_bytes(objects, photo, request):
    """In reference precision."""
    frames = panned(photo)
    first, coded_frames = frames[0], recorded(objects[1], _compress, frames)
    coded = objects[0].compress(first, True, 2)["bit_stream"]
    before = {key: value.clone() for key, value in objects[1].state_dict().items()}

    request.getfixturevalue("bare")
    intra, inter = (compile_codec(model, original=True) for model in objects)
    for codec in (intra, inter):
        codec.update(force=True)
    assert intra.compress(first, True, 2)["bit_stream"] == coded
    assert intra.decompress(coded, SIZE, SIZE, True, 2)["x_hat"].shape == first.shape
    gives_what_was_recorded(inter, _compress, _decompress, frames, coded_frames)
    assert all(torch.equal(before[key], value) for key, value in objects[1].state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eight_predicted_frames_on_kernels(objects, photo, bare, dtype):
    both_ends_agree_on_kernels(objects[1], _compress, _decompress, panned(photo), dtype)


def test_transforms_compute_in_16_bits(objects, photo):
    first = photo[:, :, :SIZE, :SIZE]

    def round_trip(intra):
        coded = intra.compress(first, True, 2)
        return coded["x_hat"], intra.decompress(coded["bit_stream"], SIZE, SIZE, True, 2)["x_hat"]

    transforms_compute_in_16_bits(*objects, round_trip)


@pytest.mark.parametrize("when", ["used", "compiled", "before", "original"])
def test_half_leaves_an_object_what_it_is(objects, photo, bare, when):
    half_changes_nothing(objects[1], _compress, _decompress, panned(photo)[:3], when)
