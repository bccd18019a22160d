"""DCVC-UF: the networks of the published objects compile; its coding calls are a CUDA extension's and stay that."""

from __future__ import annotations

import pytest
import torch

from sparsecodec.runtime import compile_codec

FAMILY = "uf"


def test_the_networks_of_its_image_model_compile(official):
    torch.manual_seed(0)
    model = official("models.image_model").DMCI().eval().requires_grad_(False)
    compiled = compile_codec(model)
    step = torch.rand(1, 384, 1, 1) + 0.5
    for name, inputs in (
        ("enc", (torch.rand(1, 3, 64, 64) - 0.5, step)),
        ("hyper_enc", (torch.randn(1, 256, 4, 4),)),
        ("hyper_dec", (torch.randn(1, 128, 1, 1),)),
        ("y_prior_fusion", (torch.randn(1, 256, 4, 4),)),
        ("y_spatial_prior_reduction", (torch.randn(1, 512, 4, 4),)),
        ("y_spatial_prior_adaptor_2", (torch.randn(1, 512, 4, 4),)),
        ("y_spatial_prior", (torch.randn(1, 512, 4, 4),)),
        ("dec", (torch.randn(1, 256, 4, 4), step)),
    ):
        expected = getattr(model, name)(*inputs)
        torch.testing.assert_close(getattr(compiled, name)(*inputs), expected, rtol=0, atol=1e-5 * expected.abs().max())
    assert compiled.forward_one_frame(torch.rand(1, 3, 64, 64) - 0.5, torch.tensor([20]), True).shape == (1, 3, 64, 64)
    rows = compiled.report.rows
    assert sum(row.macs for row in rows if row.backend == "cpu") > 0.99 * sum(row.macs for row in rows) > 0
    with pytest.raises(NotImplementedError, match="inference extensions"):
        compiled.compress(torch.rand(1, 3, 64, 64) - 0.5, 20, 0, 0)
