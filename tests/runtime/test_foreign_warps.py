"""Warping and alignment in foreign objects: recognised by what they compute, and on our kernels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecodec import UsageError
from sparsecodec.nn import BitEstimator
from sparsecodec.runtime.adapters.alignment import alignment
from sparsecodec.runtime.foreign_object import ForeignCodec, compile_object

CALLS: list[str] = []  # functions below that ran


def sampled(x: Tensor, flow: Tensor, mode: str = "border") -> Tensor:
    _, _, height, width = x.shape
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    moved = torch.stack([(columns + flow[:, 0]) * 2 / (width - 1) - 1, (rows + flow[:, 1]) * 2 / (height - 1) - 1], -1)
    return F.grid_sample(x, moved, padding_mode=mode, align_corners=True)


def moved_by(x: Tensor, flow: Tensor) -> Tensor:
    CALLS.append("moved_by")
    return sampled(x, flow)


def with_zeros_outside(x: Tensor, flow: Tensor) -> Tensor:
    CALLS.append("with_zeros_outside")
    return sampled(x, flow, "zeros")


class Aligning(nn.Module):
    """Alignment by diverse offsets, group by group."""

    weigh = staticmethod(torch.sigmoid)

    def __init__(self, channels: int = 8, groups: int = 4, repeats: int = 2) -> None:
        super().__init__()
        self.max_residue_magnitude = 5
        self.groups, self.repeats = groups, repeats
        self.conv_offset = nn.Sequential(
            nn.Conv2d(channels + 5, 16, 3, 2, 1), nn.LeakyReLU(0.1), nn.Conv2d(16, 3 * groups * repeats, 3, 1, 1)
        )
        self.fusion = nn.Conv2d(channels * repeats, channels, 1, groups=groups)

    def forward(self, x: Tensor, around: Tensor, flow: Tensor) -> Tensor:
        out = F.interpolate(self.conv_offset(around), scale_factor=2, mode="bilinear", align_corners=False)
        out = out.view(out.shape)  # as code for contiguous tensors has it
        count = self.groups * self.repeats
        parts = []
        for group in range(count):
            by = self.max_residue_magnitude * torch.tanh(out[:, 2 * group : 2 * group + 2]) + flow
            mask = self.weigh(out[:, 2 * count + group, None])
            if float(mask.detach().min()) >= 0:  # so that it cannot be traced
                parts.append(moved_by(x.chunk(self.groups, 1)[group % self.groups], by) * mask)
        return self.fusion(torch.cat(parts, 1))


class Weighing(Aligning):
    """Computes something else."""

    weigh = staticmethod(torch.exp)


class Extracting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if float(x.min()) >= 0:  # so that it cannot be traced
            x = with_zeros_outside(moved_by(x, x[:, :2]), x[:, :2])
        return self.conv(x)


class Codec(nn.Module):
    def __init__(self, aligning: type[Aligning]) -> None:
        super().__init__()
        self.extract, self.align = Extracting(), aligning()
        self.bit_estimator_z = BitEstimator(4)

    def compress(self, x: Tensor) -> Tensor:
        feature, flow = self.extract(x), 6 * x[:, :2] - 3
        return self.align(feature, torch.cat((moved_by(feature, flow), x, flow), 1), flow)

    decompress = compress


class Kind(ForeignCodec):
    LAYOUT = torch.channels_last
    TWINS = (alignment,)


@pytest.fixture
def x(photo: Tensor) -> Tensor:
    CALLS.clear()
    return photo[:, :, :24, :32].contiguous()


def _compiled(model: nn.Module, kind: type[ForeignCodec] = Kind, original: bool = False) -> ForeignCodec:
    return compile_object(model.eval(), torch.device("cpu"), None, kind, original)


def test_warps_and_alignment_run_on_kernels(x: Tensor):
    torch.manual_seed(0)
    model = Codec(Aligning)
    keys = list(model.state_dict())
    compiled = _compiled(model)
    expected = model.compress(x).detach()
    assert set(CALLS) == {"moved_by", "with_zeros_outside"}
    CALLS.clear()
    got = compiled.compress(x)
    assert CALLS.count("with_zeros_outside") == 1
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    assert got.is_contiguous(memory_format=torch.channels_last) and list(compiled.state_dict()) == keys
    rows = {row.paths[0]: row for row in compiled.report.rows if row.paths}
    assert (rows["align.fusion"].op, rows["align.fusion"].backend) == ("deform_conv2d", "cpu")
    assert rows["align.fusion"].macs == 16 * 2
    assert compiled.report.notes[-1].startswith("100.0%")
    CALLS.clear()
    assert torch.equal(compiled.decompress(x), got)
    assert CALLS == ["with_zeros_outside"]  # the rest is ours once the networks are compiled


def test_what_computes_something_else_is_left(x: Tensor):
    """Its own code sees contiguous results, whatever the object's other networks return."""
    torch.manual_seed(0)
    model = Codec(Weighing)
    assert alignment(model.align) is None and alignment(model.extract) is None
    compiled = _compiled(model)
    torch.testing.assert_close(compiled.compress(x), model.compress(x).detach(), atol=1e-5, rtol=1e-4)
    (left,) = [row for row in compiled.report.rows if row.transform == "align"]
    assert left.backend == "torch" and "cannot be traced" in left.reason


def test_weights_loaded_before_the_first_call_are_those_of_the_twin(x: Tensor):
    torch.manual_seed(0)
    first, second = Codec(Aligning), Codec(Aligning)
    compiled = _compiled(first)
    compiled.load_state_dict(second.state_dict())
    torch.testing.assert_close(compiled.compress(x), second.compress(x).detach(), atol=1e-5, rtol=1e-4)
    with pytest.raises(UsageError, match="compiled with other weights"):
        compiled.load_state_dict(first.state_dict())


def test_original_keeps_its_own_code(x: Tensor):
    model = Codec(Aligning)
    original = _compiled(model, original=True)
    expected = model.compress(x)
    CALLS.clear()
    assert torch.equal(original.compress(x), expected)
    assert CALLS.count("moved_by") == 2 + 8
