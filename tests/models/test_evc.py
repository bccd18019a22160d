"""EVC: the published architecture and keys, and real bytes."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sparsecodec import BitstreamError, UsageError
from sparsecodec.models import EVC, create, names
from sparsecodec.nn import gaussian_likelihood

Q_SCALE = 0.8


@pytest.fixture(scope="module")
def model() -> EVC:
    """Untrained, with latents of several symbols and quantisation steps that differ between channels."""
    torch.manual_seed(0)
    model = create("evc-tiny").eval().requires_grad_(False)
    model.q_basic.copy_(torch.linspace(0.3, 1.5, model.latent_channels).view(1, -1, 1, 1))
    for module, gain in ((model.enc[6], 6), (model.hyper_enc[3], 5)):
        module.weight *= gain
    n = model.latent_channels  # scales that suit those latents: few symbols escape from their tables
    model.y_prior_fusion[1].block[1].conv[2].bias[n : 2 * n] += 3
    for quarter in (0, 2):
        model.y_spatial_prior[2].block[1].conv[2].bias[quarter * n // 2 : (quarter + 1) * n // 2] += 3
    return model


@pytest.fixture(scope="module")
def x(photo: Tensor) -> Tensor:
    return photo[:, :, :128, :128].contiguous()


# --- architecture -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "millions"),
    [("ll", 17.3818), ("lm", 16.3373), ("ls", 15.1478), ("ml", 16.2714), ("mm", 15.2269), ("sl", 15.0122)]
    + [("ss", 12.7783)],
)
def test_parameters_are_those_of_the_published_checkpoints(name: str, millions: float):
    with torch.device("meta"):
        model = create(f"evc-{name}")
    state = model.state_dict()
    assert len(state) == 229
    assert round(sum(value.numel() for value in state.values()) / 1e6, 4) == millions


def test_names_are_complete_and_a_wrong_one_is_named():
    assert {"evc-ll", "evc-sm", "evc-tiny", "evc-tiny-swin", "evc-nano"} < set(names())
    assert len(set(names())) == len(names())
    with pytest.raises(UsageError, match="evc-xl.*evc-tiny"):
        create("evc-xl")
    with pytest.raises(UsageError, match="latent channels"):
        EVC("tiny", "l")


class Functional:
    """EVC's networks written out from their published description, on the keys of a state dict."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state

    def conv(self, key: str, x: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
        weight = self.state[f"{key}.weight"]
        return F.conv2d(x, weight, self.state[f"{key}.bias"], stride, weight.shape[-1] // 2, 1, groups)

    def main_block(self, key: str, x: Tensor) -> Tensor:
        t = F.leaky_relu(self.conv(f"{key}.block.0.conv1.0", x), 0.01)
        t = F.leaky_relu(self.conv(f"{key}.block.0.depth_conv.0", t, groups=t.shape[1]), 0.01)
        x = x + F.leaky_relu(self.conv(f"{key}.block.0.conv2.0", t), 0.01)
        return x + F.relu(self.conv(f"{key}.block.1.conv.2", F.relu(self.conv(f"{key}.block.1.conv.0", x))))

    def prior_block(self, key: str, x: Tensor) -> Tensor:
        t = F.leaky_relu(self.conv(f"{key}.block.0.conv1.0", x), 0.01)
        t = self.conv(f"{key}.block.0.conv2", self.conv(f"{key}.block.0.depth_conv", t, groups=t.shape[1]))
        adapted = f"{key}.block.0.adaptor.weight" in self.state
        x = t + (self.conv(f"{key}.block.0.adaptor", x) if adapted else x)
        t = F.leaky_relu(self.conv(f"{key}.block.1.conv.0", x), 0.1)
        return x + F.leaky_relu(self.conv(f"{key}.block.1.conv.2", t), 0.1)

    def down(self, key: str, x: Tensor) -> Tensor:
        t = F.leaky_relu(self.conv(f"{key}.conv1", x, 2), 0.01)
        return F.leaky_relu(self.conv(f"{key}.conv2", t), 0.1) + self.conv(f"{key}.downsample", x, 2)

    def up(self, key: str, x: Tensor) -> Tensor:
        t = F.leaky_relu(F.pixel_shuffle(self.conv(f"{key}.subpel_conv.0", x), 2), 0.01)
        t = F.leaky_relu(self.conv(f"{key}.conv", t), 0.1)
        return t + F.pixel_shuffle(self.conv(f"{key}.upsample.0", x), 2)

    def enc(self, x: Tensor) -> Tensor:
        for i in (0, 2, 4):
            x = self.main_block(f"enc.{i + 1}", self.down(f"enc.{i}", x))
        return self.conv("enc.6", x, 2)

    def dec(self, x: Tensor) -> Tensor:
        for i in (0, 2, 4):
            x = self.up(f"dec.{i + 1}", self.main_block(f"dec.{i}", x))
        return F.pixel_shuffle(self.conv("dec.7.0", self.main_block("dec.6", x)), 2)

    def hyper_enc(self, y: Tensor) -> Tensor:
        t = F.leaky_relu(self.conv("hyper_enc.1", self.prior_block("hyper_enc.0", y), 2), 0.01)
        return self.conv("hyper_enc.3", t, 2)

    def parameters(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        for i in (0, 1):
            z = F.pixel_shuffle(self.conv(f"hyper_dec.{i}.block.2", self.prior_block(f"hyper_dec.{i}", z)), 2)
        z = self.prior_block("hyper_dec.2", z)
        for i in (0, 1):
            z = self.prior_block(f"y_prior_fusion.{i}", z)
        return z.chunk(3, 1)

    def spatial(self, prior: Tensor) -> tuple[Tensor, ...]:
        for i in (0, 1, 2):
            prior = self.prior_block(f"y_spatial_prior.{i}", prior)
        return prior.chunk(4, 1)


def described_forward(state: dict[str, Tensor], x: Tensor, q_scale: float) -> tuple[Tensor, Tensor]:
    """Picture and bits of y, from the description."""
    net = Functional(state)
    q = state["q_basic"].clamp(min=0.5) * q_scale
    y = net.enc(x) / q
    step, scales, means = net.parameters(net.hyper_enc(y).round())
    step = step.clamp(min=0.5)
    y = y / step
    rows, columns = torch.arange(y.shape[2])[:, None], torch.arange(y.shape[3])
    even = ((rows + columns) % 2 == 0).to(y)
    bits = 0
    y0, y1 = y.chunk(2, 1)
    (s0, s1), (u0, u1) = scales.chunk(2, 1), means.chunk(2, 1)

    def code(value: Tensor, mean: Tensor, scale: Tensor, mask: Tensor) -> Tensor:
        nonlocal bits
        symbols = ((value - mean) * mask).round()
        bits = bits - (gaussian_likelihood(symbols, scale).log2() * mask).sum()
        return (symbols + mean) * mask

    first = torch.cat([code(y0, u0, s0, even), code(y1, u1, s1, 1 - even)], 1)
    s0, u0, s1, u1 = net.spatial(torch.cat([first, means, scales, step], 1))
    second = torch.cat([code(y0, u0, s0, 1 - even), code(y1, u1, s1, even)], 1)
    return net.dec((first + second) * step * q).clamp(0, 1), bits


def test_forward_is_the_described_one(model: EVC, x: Tensor):
    state = {key: value.double() for key, value in model.state_dict().items()}
    x_hat, bits = described_forward(state, x.double(), Q_SCALE)
    with torch.no_grad():
        result = copy.deepcopy(model).double()(x.double(), Q_SCALE)
    assert x_hat.std() > 0.01
    assert (result["x_hat"] - x_hat).abs().max() < 1e-9
    assert result["bpp_y"].item() * x.shape[2] * x.shape[3] == pytest.approx(bits.item(), rel=1e-9)


# --- bytes ------------------------------------------------------------------------------------------------------


def test_compress_and_decompress(model: EVC, x: Tensor):
    coded = model.compress(x, Q_SCALE)
    decoded = model.decompress(coded["bit_stream"], 128, 128, Q_SCALE)["x_hat"]
    assert torch.equal(decoded, coded["x_hat"])
    with torch.no_grad():
        estimated = model(x, Q_SCALE)
    assert (decoded - estimated["x_hat"]).abs().max() < 1e-4
    # The estimate knows neither the tables' rounding nor the end of a stream.
    assert 8 * len(coded["bit_stream"]) == pytest.approx(estimated["bit"].item(), rel=0.02)


DECODE = """
import sys, torch
from sparsecodec.models import create
torch.set_num_threads(1)
model = create("evc-tiny").eval()
model.load_state_dict(torch.load(sys.argv[1], weights_only=True))
torch.save(model.decompress(open(sys.argv[2], "rb").read(), 100, 128, 0.8)["x_hat"], sys.argv[3])
"""


def test_decodes_in_another_process(model: EVC, x: Tensor, tmp_path):
    torch.save(model.state_dict(), tmp_path / "model.pt")
    coded = model.compress(x, Q_SCALE)
    (tmp_path / "stream").write_bytes(coded["bit_stream"])
    paths = [tmp_path / name for name in ("model.pt", "stream", "x_hat.pt")]
    subprocess.run([sys.executable, "-c", DECODE, *paths], check=True, timeout=300)
    assert torch.equal(torch.load(paths[2]), coded["x_hat"])


def test_lower_rates_are_smaller(model: EVC, x: Tensor):
    steps = model.q_scales(5)
    assert steps == sorted(steps, reverse=True) and steps[0] == 1.8 and steps[-1] == 0.5
    sizes = [len(model.compress(x, step)["bit_stream"]) for step in steps]
    assert sizes == sorted(sizes) and sizes[-1] > 1.2 * sizes[0]


def test_steps_are_rounded_as_a_file_stores_them(model: EVC, x: Tensor):
    assert model.compress(x, 0.8049)["bit_stream"] == model.compress(x, 0.8)["bit_stream"]
    for bad in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="q_scale"):
            model.compress(x, bad)


def test_streams_of_other_settings_are_refused(model: EVC, x: Tensor):
    stream = model.compress(x, Q_SCALE)["bit_stream"]
    for height, width in ((64, 128), (192, 128)):
        with pytest.raises(BitstreamError):
            model.decompress(stream, height, width, Q_SCALE)
    with pytest.raises(UsageError, match="0 x 128"):
        model.decompress(stream, 0, 128, Q_SCALE)
    for size in (0, 1, 2, 3, 10, len(stream) // 2, len(stream) - 1):
        with pytest.raises(BitstreamError):
            model.decompress(stream[:size], 128, 128, Q_SCALE)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((3, 64, 64), torch.float32), ((1, 1, 64, 64), torch.float32), ((0, 3, 64, 64), torch.float32)]
    + [((1, 3, 64, 100), torch.float32), ((2, 3, 64, 64), torch.float32), ((1, 3, 64, 64), torch.uint8)],
)
def test_compress_refuses_bad_pictures(model: EVC, shape: tuple[int, ...], dtype: torch.dtype):
    with pytest.raises(UsageError, match="picture"):
        model.compress(torch.zeros(shape, dtype=dtype), Q_SCALE)


# --- training and checkpoints -----------------------------------------------------------------------------------


def test_training_pass_reaches_every_parameter(x: Tensor):
    torch.manual_seed(1)
    model = create("evc-tiny")
    result = model(x[:, :, :64, :64].repeat(2, 1, 1, 1), torch.tensor([0.5, 1.8]).view(2, 1, 1, 1))
    assert result["bpp"].shape == (2,)
    (result["bpp"].mean() + (result["x_hat"] - 0.5).square().mean()).backward()
    without = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert without == ["q_scale"]  # the caller draws from it
    assert all(parameter.grad.isfinite().all() for key, parameter in model.named_parameters() if key != "q_scale")


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"net": {"state_dict": s}}])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_checkpoints_load_in_their_wrappers(model: EVC, wrap, prefix: str):
    other = create("evc-tiny")
    other.load_state_dict(wrap({prefix + key: value for key, value in model.state_dict().items()}))
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in other.state_dict().items())


def test_checkpoints_that_do_not_fit_are_named(model: EVC):
    state = dict(model.state_dict())
    shapes = {**state, "q_basic": torch.ones(1, 7, 1, 1)}
    with pytest.raises(UsageError, match="q_basic.*7"):
        create("evc-tiny").load_state_dict(shapes)
    missing = {key: value for key, value in state.items() if key != "dec.7.0.bias"}
    with pytest.raises(UsageError, match="dec.7.0.bias"):
        create("evc-tiny").load_state_dict(missing)
    with pytest.raises(UsageError, match="surplus"):
        create("evc-tiny").load_state_dict({**state, "surplus": torch.ones(1)})


# --- what the family's scripts call -----------------------------------------------------------------------------------


def test_a_picture_goes_through_the_published_file(model: EVC, x: Tensor, tmp_path):
    path = tmp_path / "picture.bin"
    model.update(force=True)
    out = model.encode_decode(x, 0.804, str(path), pic_width=101, pic_height=119)
    coded, data = model.compress(x, 0.8), path.read_bytes()
    size = len(coded["bit_stream"])
    assert data[:14] == bytes([0, 0, 0, 119, 0, 0, 0, 101, 0, 80]) + size.to_bytes(4, "big")
    assert data[14:] == coded["bit_stream"] and out["bit"] == 8 * len(data)
    assert torch.equal(out["x_hat"], coded["x_hat"])
    assert out["latency"] == out["enc_time"] + out["dec_time"] > out["dec_time"] > 0
    assert model.decompress(data[14:], 119, 101, 0.8)["dec_time"] > 0
    in_memory = model.encode_decode(x, 0.804)
    assert in_memory["bit"] == out["bit"] and torch.equal(in_memory["x_hat"], coded["x_hat"])
    with pytest.raises(UsageError, match="pic_width"):
        model.encode_decode(x, 0.804, str(path))
    with pytest.raises(UsageError, match="cannot be written"):
        model.encode_decode(x, 0.804, str(tmp_path / "none" / "p"), 101, 119)
