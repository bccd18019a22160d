"""What is particular to the fused block: it is EVC's, its seams cannot be seen, its sums have one order."""

from __future__ import annotations

import copy

import pytest
import torch

from sparsecodec.errors import UsageError
from sparsecodec.nn import DepthConvBlock, PriorBlock
from sparsecodec.ops import bind, depth_conv_block, use_backend
from sparsecodec.ops.depth_conv_block import DEPTH_CONV_BLOCK
from sparsecodec.testing.depth_conv_block import CASES, PRIOR, TRANSFORM


def _arguments(case_id: str, dtype: torch.dtype = torch.float32) -> dict:
    return next(case for case in CASES if case.id == case_id).arguments(dtype)


def _constants(block: DepthConvBlock | PriorBlock, slopes: tuple[float, ...]) -> dict:
    """The op's arguments from the layers of a block, in the order they run."""
    convs = {name: m for name, m in block.named_modules() if isinstance(m, torch.nn.Conv2d) and "adaptor" not in name}
    first, depthwise, second, hidden, last = convs.values()
    adaptor = getattr(block.block[0], "adaptor", None)
    constants = {"slopes": slopes, "dw": depthwise.weight, "db": depthwise.bias}
    for i, conv in enumerate((first, second, hidden, last), 1):
        constants |= {f"w{i}": conv.weight, f"b{i}": conv.bias}
    if adaptor is not None:
        constants |= {"adaptor": adaptor.weight, "adaptor_bias": adaptor.bias}
    return constants


@pytest.mark.parametrize(
    ("block", "slopes"),
    [(lambda: DepthConvBlock(12), TRANSFORM), (lambda: PriorBlock(12, 12), PRIOR), (lambda: PriorBlock(12, 20), PRIOR)],
    ids=["transform", "prior", "prior-adaptor"],
)
def test_is_the_block_of_evc(block, slopes):
    torch.manual_seed(5)
    block = block().eval()
    x = torch.randn(1, 12, 7, 9).to(memory_format=torch.channels_last)
    with torch.no_grad():
        wide = copy.deepcopy(block).double()
        assert torch.equal(depth_conv_block(x.double(), **_constants(wide, slopes)), wide(x.double()))
        with use_backend("cpu"):
            result = depth_conv_block(x, **_constants(block, slopes))
        torch.testing.assert_close(result.double(), wide(x.double()), rtol=2e-6, atol=2e-6)


def test_seams_between_tiles_cannot_be_seen():
    """A pixel gets the same bits wherever the columns and strips of the picture around it are cut."""
    generator = torch.Generator().manual_seed(6)
    arguments = _arguments("strips")
    del arguments["x"]
    x = torch.randn(1, 8, 40, 230, generator=generator).to(memory_format=torch.channels_last)
    with torch.no_grad(), use_backend("cpu"):
        whole = depth_conv_block(x, **arguments)
        for top, left, bottom, right in [(0, 0, 40, 120), (3, 40, 22, 141), (11, 90, 40, 230), (17, 100, 20, 105)]:
            part = depth_conv_block(x[:, :, top:bottom, left:right], **arguments)
            inner = part[:, :, top > 0 : part.shape[2] - (bottom < 40), left > 0 : part.shape[3] - (right < 230)]
            assert torch.equal(
                inner, whole[:, :, top + (top > 0) : bottom - (bottom < 40), left + (left > 0) : right - (right < 230)]
            )


def test_depthwise_sums_run_from_the_bias_over_the_taps():
    """acc = bias; acc = fma(x, w, acc), rows of taps outside (float64 holds these products and sums exactly)."""
    generator = torch.Generator().manual_seed(7)
    c, h, w = 5, 4, 6
    x = torch.randint(-8, 9, (1, c, h, w), generator=generator).float() * 2.0**12
    taps = torch.randint(-8, 9, (c, 1, 3, 3), generator=generator).float() + 2.0**-9
    bias = torch.tensor([2.0**-10, 3.0, -(2.0**20), 0.0, 2.0**-8])
    eye, nothing = torch.eye(c), torch.zeros(c, c)
    with torch.no_grad(), use_backend("cpu"):
        result = depth_conv_block(
            x.to(memory_format=torch.channels_last), eye, None, taps, bias, eye, None, nothing, None, nothing, None,
            (1.0,) * 5,
        )  # fmt: skip
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
    acc = bias.view(1, c, 1, 1).expand(1, c, h, w)
    for ky in range(3):
        for kx in range(3):
            product = padded[:, :, ky : ky + h, kx : kx + w].double() * taps[:, 0, ky, kx].double().view(1, c, 1, 1)
            acc = (acc.double() + product).float()
    assert torch.equal(result, x + acc)


def test_zeros_surround_the_activated_features():
    """The depthwise layer pads its own input: with b1 = 1 and x = 0 a corner sees four taps, not nine."""
    x = torch.zeros(1, 1, 3, 3).to(memory_format=torch.channels_last)
    one, none = torch.ones(1, 1), torch.zeros(1, 1)
    with torch.no_grad(), use_backend("cpu"):
        result = depth_conv_block(
            x, none, torch.ones(1), torch.ones(1, 1, 3, 3), None, one, None, none, None, none, None, (1.0,) * 5
        )
    assert result.flatten().tolist() == [4, 6, 4, 6, 9, 6, 4, 6, 4]


def test_gradient_of_the_reference():
    arguments = _arguments("gather-free")
    wide = {name: v[:, :, :2, :3] if name == "x" else v for name, v in arguments.items()}
    x, w1, dw, w4 = (wide.pop(name).double().requires_grad_() for name in ("x", "w1", "dw", "w4"))
    rest = {n: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for n, v in wide.items()}
    assert torch.autograd.gradcheck(
        lambda x, w1, dw, w4: depth_conv_block(x, w1=w1, dw=dw, w4=w4, **rest), (x, w1, dw, w4), fast_mode=True
    )


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"slopes": (0.1, 0.1)}, "slopes: 2"),
        ({"dw": torch.zeros(7, 1, 3, 3)}, "dw: 63"),
        ({"b2": torch.zeros(3)}, "bias of w2: 3"),
        ({"w2": torch.zeros(16, 9), "b2": None}, "input channels of w2: 9"),
        ({"w4": torch.zeros(15, 64), "b4": None}, "output channels of w4: 15"),
        ({"out2_index": torch.arange(16).int() + 1}, "out_index holds 16"),
        ({"in3_index": torch.arange(16).int() + 1}, "input channels of w3: 16"),
        ({"in3_index": torch.arange(16).int() - 1}, "in_index holds -1"),
    ],
)
def test_refuses_what_does_not_fit(change, complaint):
    with use_backend("cpu"), torch.no_grad(), pytest.raises(UsageError, match=complaint):
        depth_conv_block(**{**_arguments("identity"), **change})


def test_refuses_to_write_over_its_input():
    arguments = _arguments("identity")
    run = bind(DEPTH_CONV_BLOCK, **arguments).run
    with pytest.raises(UsageError, match="out: is x"):
        run(arguments["x"], out=arguments["x"])
