"""DCVC-DC: the published objects with compiled networks code as before, and both ends of them agree."""

from __future__ import annotations

import pytest
import torch

from sparsecodec.runtime import compile_codec

FAMILY = "dc"
SIZE = 64
STATE = ("ref_frame", "ref_feature", "ref_mv_feature", "ref_y", "ref_mv_y")


@pytest.fixture(scope="module")
def objects(official):
    torch.manual_seed(0)
    found = official("models.image_model").IntraNoAR(), official("models.video_model").DMC()
    for model in found:
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

    dpb = dict.fromkeys(STATE) | {"ref_frame": x_hat}
    sent = inter.compress(second, dpb, True, 2, 1)
    received = inter.decompress(dpb, sent["bit_stream"], SIZE, SIZE, True, 2, 1)
    for name in STATE[1:]:
        assert torch.equal(sent["dpb"][name], received["dpb"][name]), name
    rows = inter.report.rows
    assert sum(row.macs for row in rows if row.backend == "cpu") > 0.97 * sum(row.macs for row in rows) > 0
    assert {row.transform for row in rows if "cannot be traced" in row.reason} == {"optic_flow", "align"}
