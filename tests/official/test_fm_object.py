"""DCVC-FM: the published objects with compiled networks code as before, and both ends of them agree."""

from __future__ import annotations

import sys

import pytest
import torch

from sparsecodec.runtime import compile_codec

FAMILY = "fm"
SIZE, QP = 64, 20
SPS = {"height": SIZE, "width": SIZE, "qp": QP, "fa_idx": 1, "sps_id": 0}
SHIFTS = (0, 1, 0, 2, 0, 2, 0, 2)
STATE = ("ref_frame", "ref_feature", "ref_mv_feature", "ref_y", "ref_mv_y")


@pytest.fixture(scope="module")
def objects(official):
    torch.manual_seed(0)
    found = official("models.image_model").DMCI(), official("models.video_model").DMC()
    for model in found:
        model.eval().requires_grad_(False)
        model.update(force=True)
    return found


def test_two_frames_through_compiled_objects(objects, photo):
    first, second = photo[:, :, :SIZE, :SIZE], photo[:, :, 2 : SIZE + 2, 3 : SIZE + 3]
    intra, inter = map(compile_codec, objects)
    expected = objects[0].compress(first, QP)
    coded = intra.compress(first, QP)
    torch.testing.assert_close(coded["x_hat"], expected["x_hat"], atol=1e-4, rtol=0)
    x_hat = intra.decompress(coded["bit_stream"], SPS)["x_hat"]
    assert torch.equal(x_hat, coded["x_hat"])

    dpb = dict.fromkeys(STATE) | {"ref_frame": x_hat}
    sent = inter.compress(second, dpb, QP, 1)
    received = inter.decompress(sent["bit_stream"], dpb, SPS)
    for name in STATE[1:]:
        assert torch.equal(sent["dpb"][name], received["dpb"][name]), name
    rows = inter.report.rows
    assert sum(row.macs for row in rows if row.backend == "cpu") > 0.97 * sum(row.macs for row in rows) > 0
    assert {row.transform for row in rows if "cannot be traced" in row.reason} == {"optic_flow", "align"}


def _compress(model, frame, dpb, index):
    coded = model.compress(frame, dpb, QP, SHIFTS[index % 8])
    return coded["bit_stream"], {**coded["dpb"], "ref_frame": coded["dpb"]["ref_frame"].clamp(0, 1)}


def _decompress(model, payload, dpb, index):
    return model.decompress(payload, dpb, {**SPS, "fa_idx": SHIFTS[index % 8]})["dpb"]


@pytest.fixture
def bare(monkeypatch):
    """Neither a coder to import nor a GPU to wait for."""

    def no_gpu(*_, **__):
        raise AssertionError("Torch not compiled with CUDA enabled")

    monkeypatch.setattr(torch.cuda, "synchronize", no_gpu)
    for name in [name for name in sys.modules if ".MLCodec_" in name]:
        monkeypatch.delitem(sys.modules, name)


def test_its_own_layers_write_the_published_bytes(objects, photo, request):
    """Eight predicted frames in reference precision: bytes, and the state after each frame, on both ends."""
    frames = [photo[:, :, 2 * t : 2 * t + SIZE, 3 * t : 3 * t + SIZE] for t in range(9)]
    first, start = frames[0], dict.fromkeys(STATE) | {"ref_frame": frames[0]}
    payloads, states, dpb = [], [], start
    coded = objects[0].compress(first, QP)["bit_stream"]
    for index, frame in enumerate(frames[1:], 1):
        payload, dpb = _compress(objects[1], frame, dpb, index)
        payloads.append(payload)
        states.append(dpb)
    before = {key: value.clone() for key, value in objects[1].state_dict().items()}

    request.getfixturevalue("bare")
    intra, inter = (compile_codec(model, original=True) for model in objects)
    for codec in (intra, inter):
        codec.update(force=True)
    assert intra.compress(first, QP)["bit_stream"] == coded
    assert intra.decompress(coded, SPS)["x_hat"].shape == first.shape
    dpb = start
    for index, (frame, payload, state) in enumerate(zip(frames[1:], payloads, states, strict=True), 1):
        again, sent = _compress(inter, frame, dpb, index)
        assert again == payload, index
        dpb = _decompress(inter, payload, dpb, index)
        assert all(torch.equal(sent[name], state[name]) for name in STATE), index
        assert all(torch.equal(dpb[name], state[name]) for name in STATE), index
    assert all(torch.equal(before[key], value) for key, value in objects[1].state_dict().items())


def test_eight_predicted_frames_on_kernels(objects, photo, bare):
    """Both ends agree on the state after each frame."""
    inter = compile_codec(objects[1])
    inter.update(force=True)
    dpb = dict.fromkeys(STATE) | {"ref_frame": photo[:, :, :SIZE, :SIZE]}
    for index in range(1, 9):
        frame = photo[:, :, 2 * index : 2 * index + SIZE, 3 * index : 3 * index + SIZE]
        payload, sent = _compress(inter, frame, dpb, index)
        dpb = _decompress(inter, payload, dpb, index)
        assert all(torch.equal(sent[name], dpb[name]) for name in STATE), index
