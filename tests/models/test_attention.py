"""Swin-V2 attention: a slow reference, torchvision's own block, and the codec that has it."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecodec import UsageError, zoo
from sparsecodec.models import EVC, create
from sparsecodec.models.attention import SwinBlock, attended
from sparsecodec.runtime import compile_codec
from sparsecodec.sparsity import trace_model

HEADS, CHANNELS = 2, 12
ROUNDING = 3e-6  # of float64 results: the logarithmic coordinates are float32 and meet weights of about 3


def trained(block: nn.Module, seed: int = 0) -> nn.Module:
    """`block` with weights at which every part of it shows: gains that are not 0, temperatures on both sides of their
    limit, position biases that differ."""
    draw = torch.Generator().manual_seed(seed)
    for name, value in block.named_parameters():
        scale = 3.0 if "position" in name else 0.5
        value.data.normal_(0, scale, generator=draw)
        if name.endswith("logit_scale"):
            value.data = torch.linspace(1.0, 5.0, len(value), dtype=value.dtype)  # log 100 is 4.6
    return block


def slow_attention(attention: nn.Module, x: Tensor) -> Tensor:
    """Window attention of one picture ``[C, H, W]`` float64, a position at a time: no roll, no padding, no mask.

    Shifting the windows by s cuts a side at s, s + M, s + 2M ...: positions share a window where floor((p - s) / M) is
    the same.
    """
    m, heads = attention.window, attention.num_heads
    channels, height, width = x.shape
    cut = [attention.shift if side > m else 0 for side in (height, width)]
    q, v = F.conv2d(x[None], attention.qv.weight, attention.qv.bias)[0].chunk(2)
    k = F.conv2d(x[None], attention.k.weight)[0]
    network = attention.position
    out = torch.zeros_like(x)

    def bias(offset: tuple[int, int]) -> Tensor:
        u = torch.tensor([math.copysign(math.log2(1 + 8 * abs(d) / (m - 1)) / 3, d) for d in offset], dtype=x.dtype)
        hidden = (network.first.weight @ u + network.first.bias).relu()
        return 16 / (1 + (-(network.second.weight @ hidden)).exp())

    for r in range(height):
        for c in range(width):
            window = [
                (a, b)
                for a in range(height)
                for b in range(width)
                if (a - cut[0]) // m == (r - cut[0]) // m and (b - cut[1]) // m == (c - cut[1]) // m
            ]
            biases = torch.stack([bias((r - a, c - b)) for a, b in window])
            for h in range(heads):
                part = slice(h * channels // heads, (h + 1) * channels // heads)
                cosines = torch.stack([F.cosine_similarity(q[part, r, c], k[part, a, b], dim=0) for a, b in window])
                scale = min(float(attention.logit_scale[h].exp()), 100.0)
                weights = (scale * cosines + biases[:, h]).softmax(0)
                out[part, r, c] = sum(w * v[part, a, b] for w, (a, b) in zip(weights, window, strict=True))
    return F.conv2d(out[None], attention.projection.weight, attention.projection.bias)[0]


def slow_norm(norm: nn.Module, x: Tensor) -> Tensor:
    mean, variance = x.mean(0), x.var(0, correction=0)
    return (x - mean) / (variance + 1e-5).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]


def slow_block(block: SwinBlock, x: Tensor) -> Tensor:
    x = x + slow_norm(block.norm1, slow_attention(block.attention, x))
    hidden = torch.einsum("oc,chw->ohw", block.mlp[0].weight[:, :, 0, 0], x) + block.mlp[0].bias[:, None, None]
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    hidden = torch.einsum("oc,chw->ohw", block.mlp[2].weight[:, :, 0, 0], hidden) + block.mlp[2].bias[:, None, None]
    return x + slow_norm(block.norm2, hidden)


# One position; less than a window; one window (never shifted); one side of several windows and one of a single one; all
# windows full; padding on both sides, by less than the shift, by more, and by exactly the shift.
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (4, 4), (4, 9), (8, 8), (7, 9), (5, 6)])
@pytest.mark.parametrize("shift", [0, 2])
def test_block_is_the_slow_one(size: tuple[int, int], shift: int):
    block = trained(SwinBlock(CHANNELS, HEADS, window=4, shift=shift)).double().eval().requires_grad_(False)
    x = torch.randn(2, CHANNELS, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    out = block(x)
    for picture, expected in zip(out, x, strict=True):
        torch.testing.assert_close(picture, slow_block(block, expected), rtol=0, atol=ROUNDING)


TORCHVISION = """
import sys, torch
library = torch.library.Library("torchvision", "DEF")  # a CUDA wheel beside a CPU torch lacks its compiled operators
for name in ("nms(Tensor d, Tensor s, float t) -> Tensor", "qnms(Tensor d, Tensor s, float t) -> Tensor"):
    try:
        library.define(name)
    except RuntimeError:
        pass
try:
    from torchvision.models.swin_transformer import SwinTransformerBlockV2
except (ImportError, OSError, RuntimeError, AttributeError) as error:
    print(error)
    sys.exit(3)
weights, cases = torch.load(sys.argv[1], weights_only=True)
for shift, x in cases:
    block = SwinTransformerBlockV2(x.shape[1], 2, [8, 8], [shift, shift]).double().eval()
    block.load_state_dict(weights, strict=False)
    with torch.no_grad():
        torch.save(block(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), f"{sys.argv[2]}/{shift}-{x.shape[2]}.pt")
"""


def _for_torchvision(block: SwinBlock) -> dict[str, Tensor]:
    """The block's weights under torchvision's names: q, k and v in one matrix, a bias of the keys that is ignored."""
    state = block.state_dict()
    q, v = state["attention.qv.weight"][:, :, 0, 0].chunk(2)
    q_bias, v_bias = state["attention.qv.bias"].chunk(2)
    names = {
        "attention.projection": "attn.proj",
        "mlp.0": "mlp.0",
        "mlp.2": "mlp.3",
        "norm1": "norm1",
        "norm2": "norm2",
    }
    result = {
        "attn.qkv.weight": torch.cat([q, state["attention.k.weight"][:, :, 0, 0], v]),
        "attn.qkv.bias": torch.cat([q_bias, torch.zeros_like(q_bias), v_bias]),
        "attn.logit_scale": state["attention.logit_scale"][:, None, None],
        "attn.cpb_mlp.0.weight": state["attention.position.first.weight"],
        "attn.cpb_mlp.0.bias": state["attention.position.first.bias"],
        "attn.cpb_mlp.2.weight": state["attention.position.second.weight"],
    }
    for ours, theirs in names.items():
        for kind in ("weight", "bias"):
            value = state[f"{ours}.{kind}"]
            result[f"{theirs}.{kind}"] = value[:, :, 0, 0] if value.ndim == 4 else value
    return result


def test_block_is_torchvision_s_where_nothing_is_padded(tmp_path):
    blocks = {s: trained(SwinBlock(CHANNELS, HEADS, 8, s)).double().eval().requires_grad_(False) for s in (0, 4)}
    draw = torch.Generator().manual_seed(2)
    cases = [
        (shift, torch.randn(2, CHANNELS, *size, dtype=torch.float64, generator=draw))
        for shift, size in ((0, (16, 8)), (4, (24, 16)), (4, (8, 16)))
    ]
    torch.save((_for_torchvision(blocks[0]), cases), tmp_path / "in.pt")
    command = [sys.executable, "-c", TORCHVISION, tmp_path / "in.pt", tmp_path]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if process.returncode == 3:
        pytest.skip(f"torchvision does not import: {process.stdout.strip()}")
    assert process.returncode == 0, process.stderr
    for shift, x in cases:
        expected = torch.load(tmp_path / f"{shift}-{x.shape[2]}.pt")
        torch.testing.assert_close(blocks[shift](x), expected, rtol=0, atol=ROUNDING)


def test_positions_that_the_shift_brings_together_do_not_see_each_other():
    block = trained(SwinBlock(CHANNELS, HEADS, window=4, shift=2)).eval().requires_grad_(False)
    x = torch.randn(1, CHANNELS, 8, 8, generator=torch.Generator().manual_seed(3))
    changed = x.clone()
    changed[:, :, 7, 7] += 1
    touched = (block(changed) != block(x)).any(1)[0]
    assert touched.nonzero().tolist() == [[r, c] for r in (6, 7) for c in (6, 7)]


def test_mask_is_symmetric_and_lets_every_position_see_itself():
    mask = attended(6, 9, 4, (2, 2), torch.device("cpu"))
    assert mask.shape == (2 * 3, 16, 16)
    assert torch.equal(mask, mask.mT) and mask.diagonal(dim1=1, dim2=2).all()
    assert not mask.all()


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
def test_new_block_is_the_identity(autocast: bool):
    torch.manual_seed(0)
    block = SwinBlock(32, 2, window=4, shift=2)
    x = torch.randn(2, 32, 9, 8)
    x = x.bfloat16() if autocast else x
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = block(x)
    assert out.dtype == x.dtype and torch.equal(out, x)
    out.float().square().sum().backward()
    moved = {name for name, value in block.named_parameters() if value.grad.abs().max() > 0}
    assert moved == {"norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"}  # the rest follows from the next step


def test_every_parameter_learns_once_the_gain_is_not_zero():
    block = trained(SwinBlock(CHANNELS, HEADS, window=4, shift=2))
    block.attention.logit_scale.data.fill_(2.0)  # the clamp stops the gradient above log 100
    block(torch.randn(1, CHANNELS, 8, 8)).square().sum().backward()
    assert all(value.grad.abs().max() > 0 for value in block.parameters())


# --- the codec ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def backbone() -> EVC:
    torch.manual_seed(0)
    return create("evc-tiny").eval()


@pytest.fixture(scope="module")
def teacher(backbone: EVC) -> EVC:
    """With attention that does something."""
    torch.manual_seed(1)
    model = create("evc-tiny-swin").eval().requires_grad_(False)
    model.load_backbone(backbone.state_dict())
    for name, value in model.named_parameters():
        if "norm" in name:
            value.normal_(0, 0.1)
    return model


def test_codec_with_new_attention_is_the_codec_without(backbone: EVC):
    model = create("evc-tiny-swin").eval()
    model.load_backbone({"state_dict": backbone.state_dict()})
    x = torch.rand(1, 3, 64, 128)
    with torch.no_grad():
        ours, theirs = model(x, 0.8), backbone(x, 0.8)
    assert all(torch.equal(ours[key], theirs[key]) for key in ("x_hat", "bpp_y", "bpp_z"))
    assert model.compress(x, 0.8)["bit_stream"] == backbone.compress(x, 0.8)["bit_stream"]


def test_teacher_is_larger_and_the_student_63_percent_smaller():
    with torch.device("meta"):
        teacher, tiny, nano = (
            sum(p.numel() for p in create(name).parameters()) for name in ("evc-tiny-swin", "evc-tiny", "evc-nano")
        )
    assert teacher > 1.25 * tiny
    assert 0.36 < nano / teacher < 0.375


def test_backbone_is_loaded_on_request_only(backbone: EVC, teacher: EVC):
    model, state = create("evc-tiny-swin"), backbone.state_dict()
    with pytest.raises(UsageError, match="attention"):
        model.load_state_dict(state)
    with pytest.raises(UsageError, match="no attention"):
        create("evc-tiny").load_backbone(state)
    with pytest.raises(UsageError, match=r"holds attention, such as dec\.0\.attention"):
        model.load_backbone(teacher.state_dict())
    with pytest.raises(UsageError, match=r"dec\.7\.0\.bias"):
        model.load_backbone({key: value for key, value in state.items() if key != "dec.7.0.bias"})
    with pytest.raises(UsageError, match="q_basic"):
        model.load_backbone({**state, "q_basic": torch.ones(1, 7, 1, 1)})


def test_teacher_codes_real_bytes(teacher: EVC):
    x = torch.rand(1, 3, 64, 128, generator=torch.Generator().manual_seed(4))
    coded = teacher.compress(x, 0.6)
    assert torch.equal(teacher.decompress(coded["bit_stream"], 64, 128, 0.6)["x_hat"], coded["x_hat"])
    with torch.no_grad():
        assert (coded["x_hat"] - teacher(x, 0.6)["x_hat"]).abs().max() < 1e-4


def test_teacher_compiles_and_its_attention_says_why_it_stays_in_torch(teacher: EVC):
    codec = compile_codec(teacher, dtype=torch.float32)
    x = torch.rand(1, 3, 70, 100, generator=torch.Generator().manual_seed(5))
    decoded = codec.decode(codec.encode(x, 50))
    padded = F.pad(x, (0, 28, 0, 58), mode="replicate")
    expected = teacher.compress(padded, teacher.q_scales(3)[1])["x_hat"][:, :, :70, :100]
    assert (decoded - expected).abs().max() < 1e-3
    reasons = {row.op: row.reason for row in codec.report.rows if row.backend == "torch"}
    assert reasons["window_attention"] == "window_attention has no rule"
    assert {row.backend for row in codec.report.rows if any("attention.qv" in path for path in row.paths)} != {"torch"}


def test_channel_graph_locks_what_attention_mixes_and_prunes_the_rest(teacher: EVC):
    graph = trace_model(teacher, ("dec",))
    mixed = graph.layers["dec.2.attention.0.attention.qv"].outputs
    assert all("window_attention" in graph.spaces[name].locked for name, _ in mixed.parts)
    hidden = graph.layers["dec.2.attention.0.mlp.0"].outputs
    assert all(name in graph.prunable for name, _ in hidden.parts)


def test_teacher_survives_the_zoo(teacher: EVC, tmp_path):
    zoo.save(teacher, tmp_path / "teacher")
    loaded = zoo.load(tmp_path / "teacher").eval()
    assert loaded.config == {"family": "evc", "encoder": "tiny-swin", "decoder": "tiny-swin"}
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(x, 1.0)["x_hat"], teacher(x, 1.0)["x_hat"])
