"""Steps that torch computes: into planned buffers where it can, and means without its slow reduction."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecodec.nn.hem_layers import ActivatedBlock, ExcitedBlock, SqueezeExcite, UNet
from sparsecodec.runtime.fusion import fuse
from sparsecodec.runtime.lowering import lower
from sparsecodec.runtime.planning import make_plan
from sparsecodec.runtime.torch_steps import writer
from sparsecodec.runtime.transform import CompiledTransform


class Mixed(nn.Module):
    """Every function that has a form with `out`, each reading what later steps read as well."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(6, 8, 3, padding=1), nn.Conv2d(6, 8, 1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        activated = F.leaky_relu(torch.cat([a, b], 1), 0.1)
        product = activated * activated.mean((2, 3))[:, :, None, None]
        return self.pool(torch.cat([product + activated, a], 1))


def _ops(transform: CompiledTransform) -> list[str]:
    return [row.op for row in transform.rows(1, {})]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("module", [Mixed, lambda: UNet(6, 5, (8, 8, 16))], ids=["mixed", "u-net"])
def test_equals_the_module_also_at_the_second_call(module, dtype):
    torch.manual_seed(0)
    module = module().eval().requires_grad_(False)
    transform = CompiledTransform(module, "net", dtype)
    for _ in range(2):
        x = torch.randn(1, 6, 16, 24)
        expected = module(x)
        error = (transform(x).float() - expected).abs().max() / expected.abs().max()
        assert error < (1e-5 if dtype == torch.float32 else 3e-2)


def test_what_torch_computes_lies_in_planned_buffers():
    program = fuse(lower(Mixed().eval(), "net"))
    plan = make_plan(program, "net", torch.empty(1, 6, 16, 24))
    planned = [step for step, out in zip(program.steps, plan.out, strict=True) if out is not None and writer(step)]
    assert [step.target if step.target is torch.cat else type(step.function).__name__ for step in planned][:2] == [
        torch.cat,
        "LeakyReLU",
    ]
    assert len(planned) == 5  # two concatenations, an activation, a product, a sum
    where = {id(step): out.data_ptr() for step, out in zip(program.steps, plan.out, strict=True) if out is not None}
    for step in planned:
        assert where[id(step)] not in {where.get(id(source)) for source in step.sources}


def test_results_of_views_are_not_planned():
    program = fuse(lower(SqueezeExcite(16), "net"))
    plan = make_plan(program, "net", torch.empty(1, 16, 8, 8))
    planned = [step.target for step, out in zip(program.steps, plan.out, strict=True) if out is not None]
    assert len(planned) == 1 and planned[0] is program.output.target


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_bits_of_means_do_not_depend_on_threads(threads):
    torch.manual_seed(0)
    transform = CompiledTransform(SqueezeExcite(32).eval(), "net", torch.float32)
    x, before = torch.randn(1, 32, 130, 70), torch.get_num_threads()
    expected = transform(x).clone()
    assert "_means" in _ops(transform) and "mean" not in _ops(transform)
    try:
        torch.set_num_threads(threads)
        assert torch.equal(transform(x), expected)
    finally:
        torch.set_num_threads(before)


def test_a_block_adds_to_a_sum_whose_width_its_reader_says():
    transform = CompiledTransform(
        nn.Sequential(ExcitedBlock(8, 16), ActivatedBlock(16, 0)).eval(), "net", torch.float32
    )
    with torch.no_grad():
        transform(torch.randn(1, 8, 6, 6))
    assert _ops(transform).count("add") == 1  # that of the first block, a product with factors beside it


def test_an_input_of_another_dtype_is_converted_into_kept_memory():
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 8, 1).requires_grad_(False)
    transform, shape = CompiledTransform(layer, "net", torch.float32), (1, 8, 6, 6)
    for _ in range(3):
        x = torch.randn(shape).bfloat16()
        assert torch.allclose(transform(x), layer(x.float()), atol=1e-5)
    (plan,) = transform._plans.values()
    assert len(plan.converted) == 1
    transform(torch.randn(shape))
    assert torch.equal(next(iter(plan.converted.values())), x.float())


def test_buffers_made_in_inference_mode_are_written_to_outside_it():
    module = Mixed().eval().requires_grad_(False)
    transform, x = CompiledTransform(module, "net", torch.float32), torch.randn(1, 6, 16, 24).bfloat16()
    with torch.inference_mode():
        expected = transform(x).clone()
    assert torch.equal(transform(x), expected)
