"""Target widths: a student that cannot be cut is refused with the place, and a MAC reduction is met."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsecodec.errors import GraphError, UsageError
from sparsecodec.models import create
from sparsecodec.sparsity import ChannelMasks, compact, count, student_targets, trace_model, uniform_targets


@pytest.mark.parametrize(
    ("student", "paths", "message"),
    [
        (
            "evc-nano",
            ["enc", "dec"],
            "'enc.6' has 96 channels and is locked, because it is an output, the student's 64",
        ),
        ("evc-ss", ["enc", "dec"], "the student's 64"),
        ("evc-tiny-s", ["dec"], r"enc.0.conv1.bias would be \(32,\) and is \(16,\) in the student"),
    ],
)
def test_a_student_that_cannot_be_cut_is_refused(evc, student: str, paths: list[str], message: str) -> None:
    with pytest.raises(GraphError, match=f"cannot be cut from the model: .*{message}"):
        student_targets(evc.model, trace_model(evc.model, paths), create(student))


def test_a_student_of_another_structure_is_refused(evc) -> None:
    student = create("evc-tiny-s")
    student.dec[2] = nn.Identity()  # a block less: other layers make the stage
    with pytest.raises(GraphError, match="no space 'dec.1.conv' made by dec.1.conv, dec.1.upsample.0, dec.2.block"):
        student_targets(evc.model, trace_model(evc.model, ["dec"]), student)


def test_a_student_as_wide_as_the_model_is_refused(evc) -> None:
    with pytest.raises(UsageError, match="as wide as the model"):
        student_targets(evc.model, trace_model(evc.model, ["enc"]), create("evc-tiny"))


def test_uniform_targets_meet_the_mac_reduction(evc) -> None:
    graph = trace_model(evc.model, ["dec"])
    report = count(evc.model, {"dec": evc.shapes["dec"]})
    targets = uniform_targets(evc.model, graph, report, 0.5, round_to=4)
    masks = ChannelMasks({name: torch.arange(graph.spaces[name].width) < kept for name, kept in targets.items()})
    small = compact(evc.model, masks, graph)
    assert 0.5 <= 1 - count(small, {"dec": evc.shapes["dec"]}).macs / report.macs < 0.6
    assert all(width % 4 == 0 for width in targets.values())
    assert not any(name.startswith("branch") for name in targets)
