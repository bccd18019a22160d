"""Optical flow: published weights as files, and the motion between two pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sparsecodec import UsageError
from sparsecodec.nn import FlowNetwork, warp_by_grid
from sparsecodec.nn.flow import halve_size


def _write(network: FlowNetwork, folder: Path) -> None:
    for level, step in enumerate(network.moduleBasic, 1):
        for j in range(1, 6):
            for name, value in step.get_submodule(f"conv{j}").named_parameters():
                np.save(folder / f"modelL{level}_F-{j}-{name}.npy", value.detach().numpy())


def test_arrays_are_loaded_into_their_layers(tmp_path: Path):
    torch.manual_seed(0)
    published, network = FlowNetwork((4, 6, 5, 3)), FlowNetwork((4, 6, 5, 3))
    _write(published, tmp_path)
    network.load_arrays(tmp_path)
    for key, value in published.state_dict().items():
        assert torch.equal(network.state_dict()[key], value), key


def test_wrong_files_are_named(tmp_path: Path):
    _write(FlowNetwork((4, 6, 5, 3)), tmp_path)
    with pytest.raises(UsageError, match=r"modelL1_F-2-weight\.npy has shape \(6, 4, 7, 7\).*\(8, 4, 7, 7\)"):
        FlowNetwork((4, 8, 5, 3)).load_arrays(tmp_path)
    path = tmp_path / "modelL3_F-1-bias.npy"
    for content in (b"no array", None):
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(UsageError, match=r"modelL3_F-1-bias\.npy"):
            FlowNetwork((4, 6, 5, 3)).load_arrays(tmp_path)


def test_a_warp_reads_where_the_flow_points():
    x = torch.arange(48.0).view(1, 1, 6, 8)
    flow = torch.zeros(1, 2, 6, 8)
    flow[:, 0], flow[:, 1] = 2.0, -1.0  # right and up; beyond the border its last value
    rows = (torch.arange(6) - 1).clamp(min=0)
    columns = (torch.arange(8) + 2).clamp(max=7)
    torch.testing.assert_close(warp_by_grid(x, flow), x[:, :, rows][..., columns], atol=1e-4, rtol=0)
    assert torch.equal(halve_size(x), torch.nn.functional.avg_pool2d(x, 2))


@pytest.mark.parametrize("amount", [0.0, 0.25, 2.0])
def test_positions_are_float32_under_autocast(amount):
    """A flow of bfloat16, as autocast's layers give it, moves by what it says, at a picture's far end too."""
    torch.manual_seed(0)
    x, flow = torch.rand(1, 3, 8, 200), torch.full((1, 2, 8, 200), amount)
    expected = warp_by_grid(x, flow)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(warp_by_grid(x, flow.bfloat16()), expected, atol=1e-6, rtol=0)
