"""What is particular to normalisation."""

from __future__ import annotations

import pytest
import torch

from sparsecodec._compat import import_compressai
from sparsecodec.errors import UsageError
from sparsecodec.ops import bind, gdn, use_backend
from sparsecodec.ops.gdn import GDN


def _parameters(c: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(8)
    return torch.rand(c, generator=generator) + 0.1, torch.rand(c, c, generator=generator) / c


def test_by_hand():
    x = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    beta, gamma = torch.tensor([0.0, 9.0]), torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    with use_backend("cpu"):
        assert gdn(x, beta, gamma).flatten().tolist() == pytest.approx([3 / 5, 4 / 5])
        assert gdn(x, beta, gamma, inverse=True).flatten().tolist() == [15, 20]


@pytest.mark.parametrize("inverse", [False, True])
def test_is_compressais_layer(inverse):
    import_compressai()
    from compressai.layers import GDN as Layer

    layer = Layer(24, inverse=inverse).double()
    with torch.no_grad():
        layer.gamma += torch.rand(24, 24)
        x = torch.randn(1, 24, 5, 7, dtype=torch.float64)
        beta, gamma = layer.beta_reparam(layer.beta), layer.gamma_reparam(layer.gamma)
        torch.testing.assert_close(gdn(x, beta, gamma, inverse), layer(x), rtol=1e-12, atol=0)


def test_in_place():
    beta, gamma = _parameters(20)
    x = torch.randn(2, 20, 11, 13).to(memory_format=torch.channels_last)
    with torch.no_grad():
        run = bind(GDN, x, beta, gamma).run
        expected = run(x)
        assert torch.equal(run(x, out=x), expected) and torch.equal(x, expected)


def test_gradient_of_the_reference():
    beta, gamma = (value.double().requires_grad_() for value in _parameters(3))
    x = torch.randn(1, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    for inverse in (False, True):
        assert torch.autograd.gradcheck(lambda *a, inverse=inverse: gdn(*a, inverse), (x, beta, gamma))


def test_refuses_what_does_not_fit():
    beta, gamma = _parameters(4)
    x = torch.randn(1, 5, 2, 2).to(memory_format=torch.channels_last)
    with use_backend("cpu"), torch.no_grad():
        with pytest.raises(UsageError, match="x: 5 channels"):
            gdn(x, beta, gamma)
        with pytest.raises(UsageError, match="gamma: 16 values"):
            gdn(x, torch.ones(5), gamma)
