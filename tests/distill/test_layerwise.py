"""Layer-wise distillation: its zero, its invariances, and who receives gradient."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sparsecodec.distill import LayerwiseDistillation, blocks_of, feature_distance
from sparsecodec.errors import UsageError

LAYERS = ["net.0", "net.2", "net.4"]


class Student(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.LeakyReLU(inplace=True),
            nn.Conv2d(8, 8, 3),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 3, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


@pytest.fixture
def pair() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    teacher = Student()
    return copy.deepcopy(teacher), teacher


def _run(distillation: LayerwiseDistillation, student: nn.Module) -> torch.Tensor:
    with distillation.watching():
        student(torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(1)))
    return distillation.loss()


def _disturb(module: nn.Module, factor: float) -> None:
    with torch.no_grad():
        module.weight += factor * torch.randn(module.weight.shape, generator=torch.Generator().manual_seed(2))


def test_student_equal_to_its_teacher_has_no_loss_and_uniform_weights(pair) -> None:
    distillation = LayerwiseDistillation(*pair, LAYERS)
    assert _run(distillation, pair[0]) == 0
    assert distillation.weights().tolist() == pytest.approx([1 / 3] * 3)


def test_only_the_disturbed_block_differs_because_each_is_given_the_student_s_input(pair) -> None:
    student, teacher = pair
    _disturb(student.net[0], 0.1)
    distillation = LayerwiseDistillation(student, teacher, LAYERS)
    assert _run(distillation, student) > 0
    assert distillation.average[0] > 0
    assert distillation.average[1:].tolist() == [0, 0]
    assert distillation.weights().tolist() == [1, 0, 0]


def test_more_distorted_blocks_weigh_more_and_weights_sum_to_one(pair) -> None:
    student, teacher = pair
    _disturb(student.net[0], 0.02)
    _disturb(student.net[2], 0.1)
    distillation = LayerwiseDistillation(student, teacher, LAYERS)
    loss = _run(distillation, student)
    weights = distillation.weights()
    assert weights[1] > weights[0] > weights[2] == 0
    assert weights.sum() == pytest.approx(1)
    assert loss.item() == pytest.approx((weights * distillation.average).sum().item(), rel=1e-5)


def test_gradient_reaches_the_student_only_and_weights_carry_none(pair) -> None:
    student, teacher = pair
    _disturb(student.net[2], 0.1)
    distillation = LayerwiseDistillation(student, teacher, ["net.2"])
    loss = _run(distillation, student)
    (grad,) = torch.autograd.grad(loss, student.net[2].weight, retain_graph=True)
    assert grad.abs().max() > 0
    loss.backward()
    assert all(p.grad is None for p in teacher.parameters())
    x = student.net[:2](torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(1)))
    distance = feature_distance(student.net[2](x), teacher.net[2](x).detach())
    (alone,) = torch.autograd.grad(distance, student.net[2].weight)
    torch.testing.assert_close(grad, alone)  # one layer: its weight is 1 and constant


def test_distance_ignores_scale() -> None:
    a, b = torch.rand(2, 5, 4, 4) + 0.1, torch.rand(2, 5, 4, 4) + 0.1
    assert feature_distance(3 * a, 3 * b).item() == pytest.approx(feature_distance(a, b).item(), rel=1e-4)
    assert feature_distance(a, 7 * a).item() == pytest.approx(0, abs=1e-10)
    assert feature_distance(torch.zeros_like(a), torch.zeros_like(a)) == 0
    assert feature_distance(a, -a).item() == pytest.approx(4 / 5, rel=1e-4)


def test_running_mean_is_slow_and_resumes(pair) -> None:
    student, teacher = pair
    _disturb(student.net[0], 0.1)
    distillation = LayerwiseDistillation(student, teacher, LAYERS)
    _run(distillation, student)
    first = distillation.average[0].item()
    student.load_state_dict(teacher.state_dict())
    _run(distillation, student)
    assert distillation.average[0].item() == pytest.approx(0.99 * first, rel=1e-5)
    other = LayerwiseDistillation(student, teacher, LAYERS)
    other.load_state_dict(distillation.state_dict())
    assert torch.equal(other.average, distillation.average)
    assert set(distillation.state_dict()) == {"average"}


def test_hooks_are_gone_after_watching(pair) -> None:
    student, teacher = pair
    distillation = LayerwiseDistillation(student, teacher, LAYERS)
    with pytest.raises(RuntimeError), distillation.watching():
        student(torch.rand(1, 4, 9, 9))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in student.modules())


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor, step: torch.Tensor | None = None) -> torch.Tensor:
        y = self.conv(x)
        return y if step is None else y + step


def test_a_block_of_several_frames_counts_with_the_mean_and_with_its_other_arguments() -> None:
    torch.manual_seed(0)
    teacher = nn.Sequential(Scaled())
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        student[0].conv.weight.add_(0.3)
    distillation = LayerwiseDistillation(student, teacher, ["0"])
    frames, step = torch.randn(2, 1, 3, 4, 4), torch.randn(1, 3, 1, 1)
    with distillation.watching():
        for frame in frames:
            student[0](frame, step=step)
    expected = [feature_distance(student[0](frame, step), teacher[0](frame, step)) for frame in frames]
    assert distillation.loss().item() == pytest.approx((expected[0] + expected[1]).item() / 2)


def test_blocks_are_the_children_with_parameters(pair) -> None:
    assert blocks_of(pair[0], ["net"]) == LAYERS


def test_errors_name_the_block(pair) -> None:
    student, teacher = pair
    with pytest.raises(UsageError, match=r"student Student has no module 'net\.9'"):
        LayerwiseDistillation(student, teacher, ["net.9"])
    with pytest.raises(UsageError, match="no layers"):
        LayerwiseDistillation(student, teacher, [])
    distillation = LayerwiseDistillation(student, teacher, LAYERS)
    with distillation.watching():
        student.net[0](torch.rand(1, 3, 9, 9))
    with pytest.raises(UsageError, match=r"net\.2"):
        distillation.loss()
