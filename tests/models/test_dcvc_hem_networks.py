"""DCVC-HEM's networks: the published keys, and what a description of them says that they compute."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sparsecodec.models import VideoCodec, create
from sparsecodec.nn import gaussian_likelihood, laplace_likelihood
from sparsecodec.nn.hem_inter import HEMState

STEPS = (1.1, 0.7)  # of motion and latent


@pytest.mark.parametrize(("name", "keys", "millions"), [("image", 175, 31.1690), ("video", 406, 17.5233)])
def test_parameters_are_those_of_the_published_checkpoints(name: str, keys: int, millions: float):
    with torch.device("meta"):
        state = create(f"dcvc-hem-{name}").state_dict()
    assert len(state) == keys
    assert round(sum(value.numel() for value in state.values()) / 1e6, 4) == millions


class Functional:
    """DCVC-HEM's networks written out from their published description, on the keys of a state dict."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state

    def conv(self, key: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = self.state[f"{key}.weight"]
        return F.conv2d(x, weight, self.state[f"{key}.bias"], stride, weight.shape[-1] // 2)

    def up(self, key: str, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(f"{key}.0", x), 2)

    def rb(self, key: str, x: Tensor) -> Tensor:
        return x + F.leaky_relu(self.conv(f"{key}.conv2", F.leaky_relu(self.conv(f"{key}.conv1", x), 0.01)), 0.01)

    def res(self, key: str, x: Tensor, slope: float = 0.01, after: bool = False) -> Tensor:
        t = self.conv(f"{key}.conv1", F.leaky_relu(x, slope))
        t = self.conv(f"{key}.conv2", F.leaky_relu(t, slope))
        return x + (F.leaky_relu(t, slope) if after else t)

    def enc(self, key: str, x: Tensor) -> Tensor:
        for i in (0, 2, 4):
            t = F.leaky_relu(self.conv(f"{key}.{i}.conv1", x, 2), 0.01)
            x = F.leaky_relu(self.conv(f"{key}.{i}.conv2", t), 0.1) + self.conv(f"{key}.{i}.downsample", x, 2)
            x = self.rb(f"{key}.{i + 1}", x)
        return self.conv(f"{key}.6", x, 2)

    def dec(self, key: str, x: Tensor) -> Tensor:
        for i in (0, 2, 4):
            x = self.rb(f"{key}.{i}", x)
            t = F.leaky_relu(self.up(f"{key}.{i + 1}.subpel_conv", x), 0.01)
            x = F.leaky_relu(self.conv(f"{key}.{i + 1}.conv", t), 0.1) + self.up(f"{key}.{i + 1}.upsample", x)
        return self.up(f"{key}.7", self.rb(f"{key}.6", x))

    def chain(self, key: str, x: Tensor, strides: tuple[int, ...], slope: float = 0.01) -> Tensor:
        for i, stride in enumerate(strides):
            x = self.conv(f"{key}.{2 * i}", x if i == 0 else F.leaky_relu(x, slope), stride)
        return x

    def hyper_dec(self, key: str, z: Tensor) -> Tensor:
        z = self.up(f"{key}.2", F.leaky_relu(self.conv(f"{key}.0", z), 0.01))
        z = self.up(f"{key}.6", F.leaky_relu(self.conv(f"{key}.4", F.leaky_relu(z, 0.01)), 0.01))
        return self.conv(f"{key}.8", F.leaky_relu(z, 0.01))

    def cbr(self, key: str, x: Tensor) -> Tensor:
        t = self.conv(f"{key}.conv.2", F.leaky_relu(self.conv(f"{key}.conv.0", x), 0.01))
        s = F.linear(t.mean((2, 3)), self.state[f"{key}.conv.3.fc.0.weight"]).relu()
        s = F.linear(s, self.state[f"{key}.conv.3.fc.2.weight"]).sigmoid()
        return self.conv(f"{key}.up_dim", x) + t * s[:, :, None, None]

    def unet(self, key: str, x: Tensor) -> Tensor:
        full = self.cbr(f"{key}.conv1", x)
        half = self.cbr(f"{key}.conv2", F.max_pool2d(full, 2))
        x = self.cbr(f"{key}.conv3", F.max_pool2d(half, 2))
        for i in range(4):
            x = self.res(f"{key}.context_refine.{i}", x, 0.0)
        x = self.cbr(f"{key}.up_conv3", torch.cat([half, self.up(f"{key}.up3", x)], 1))
        return self.cbr(f"{key}.up_conv2", torch.cat([full, self.up(f"{key}.up2", x)], 1))

    def flow(self, x: Tensor, ref: Tensor) -> Tensor:
        v = x.new_zeros(1, 2, x.shape[2] // 16, x.shape[3] // 16)
        for level in range(4):
            a, b = (F.avg_pool2d(p, 2 ** (3 - level)) if level < 3 else p for p in (x, ref))
            u = 2 * F.interpolate(v, scale_factor=2, mode="bilinear")
            t = torch.cat([a, warped(b, u), u], 1)
            for i in range(1, 6):
                t = self.conv(f"optic_flow.moduleBasic.{level}.conv{i}", t if i == 1 else t.relu())
            v = u + t
        return v

    def code(self, y: Tensor, hyper: Tensor, names: tuple[str, str], q: Tensor, likelihood) -> tuple[Tensor, Tensor]:
        """Latent before the division by q, what the fusion reads -> (latent times q, bits)."""
        y = y / q
        step, scales, means = self.chain(names[0], hyper, (1, 1, 1), 0.2).chunk(3, 1)
        step = step.clamp(min=0.5)
        y = y / step
        rows, columns = torch.arange(y.shape[2])[:, None], torch.arange(y.shape[3])
        even = ((rows + columns) % 2 == 0).to(y)
        (y0, y1), (s0, s1), (u0, u1) = (t.chunk(2, 1) for t in (y, scales, means))
        bits = torch.zeros(())

        def one(value: Tensor, mean: Tensor, scale: Tensor, mask: Tensor) -> Tensor:
            nonlocal bits
            symbols = ((value - mean) * mask).round()
            bits = bits - (likelihood(symbols, scale).log2() * mask).sum()
            return (symbols + mean) * mask

        first = torch.cat([one(y0, u0, s0, even), one(y1, u1, s1, 1 - even)], 1)
        prior = self.chain(names[1], torch.cat([first, means, scales, step], 1), (1, 1, 1), 0.2)
        s0, u0, s1, u1 = prior.chunk(4, 1)
        second = torch.cat([one(y0, u0, s0, 1 - even), one(y1, u1, s1, even)], 1)
        return (first + second) * step * q, bits


def warped(x: Tensor, flow: Tensor) -> Tensor:
    height, width = x.shape[2:]
    size = torch.tensor([(width - 1) / 2, (height - 1) / 2]).view(2, 1, 1)
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    grid = torch.stack([columns, rows]) + flow / size
    return F.grid_sample(x, grid.permute(0, 2, 3, 1), padding_mode="border", align_corners=True)


def described_image(state: dict[str, Tensor], x: Tensor, q_scale: float) -> tuple[Tensor, Tensor]:
    net = Functional(state)
    q = state["q_basic"].clamp(min=0.5) * q_scale
    y = net.enc("enc", x)
    z = net.chain("hyper_enc", y / q, (1, 1, 2, 1, 2)).round()
    y_hat, bits = net.code(
        y, net.hyper_dec("hyper_dec", z), ("y_prior_fusion", "y_spatial_prior"), q, gaussian_likelihood
    )
    return net.conv("refine.1", net.unet("refine.0", net.dec("dec", y_hat))).clamp(0, 1), bits


def described_frame(state: dict[str, Tensor], x: Tensor, before: HEMState, steps: tuple[float, float]):
    """(state after the frame, bits of the motion's latent, bits of the latent)."""
    net = Functional(state)
    q_mv, q = (state[f"{name}_q_basic"].clamp(min=0.5) * step for name, step in zip(("mv_y", "y"), steps, strict=True))
    mv_y = net.enc("mv_encoder", net.flow(x, before.frame))
    mv_z = net.chain("mv_hyper_prior_encoder", mv_y / q_mv, (1, 1, 2, 1, 2)).round()
    last = torch.zeros_like(mv_y) if before.mv is None else before.mv
    names = ("mv_y_prior_fusion", "mv_y_spatial_prior")
    hyper = torch.cat([net.hyper_dec("mv_hyper_prior_decoder", mv_z), last], 1)
    mv_hat, mv_bits = net.code(mv_y, hyper, names, q_mv, laplace_likelihood)
    v1 = net.dec("mv_decoder", mv_hat)
    v2 = F.interpolate(v1, scale_factor=0.5, mode="bilinear") / 2
    v3 = F.interpolate(v2, scale_factor=0.5, mode="bilinear") / 2

    if before.feature is None:
        feature = net.conv("feature_adaptor_I", before.frame)
    else:
        feature = net.conv("feature_adaptor_P", before.feature)
    l1 = net.res("feature_extractor.res_block1", net.conv("feature_extractor.conv1", feature))
    l2 = net.res("feature_extractor.res_block2", net.conv("feature_extractor.conv2", l1, 2))
    l3 = net.res("feature_extractor.res_block3", net.conv("feature_extractor.conv3", l2, 2))
    k1, k2, k3 = warped(l1, v1), warped(l2, v2), warped(l3, v3)
    fuse = "context_fusion_net"
    t = torch.cat([net.res(f"{fuse}.res_block3_up", net.up(f"{fuse}.conv3_up", k3)), k2], 1)
    u = torch.cat([net.res(f"{fuse}.res_block2_up", net.up(f"{fuse}.conv2_up", t)), k1], 1)
    c1 = k1 + net.res(f"{fuse}.res_block1_out", net.conv(f"{fuse}.conv1_out", u))
    c2 = k2 + net.res(f"{fuse}.res_block2_out", net.conv(f"{fuse}.conv2_out", t))
    c3 = k3 + net.res(f"{fuse}.res_block3_out", net.conv(f"{fuse}.conv3_out", k3))

    key = "contextual_encoder"
    y = torch.cat([net.conv(f"{key}.conv1", torch.cat([x, c1], 1), 2), c2], 1)
    y = torch.cat([net.conv(f"{key}.conv2", net.res(f"{key}.res1", y, 0.1, True), 2), c3], 1)
    y = net.conv(f"{key}.conv4", net.conv(f"{key}.conv3", net.res(f"{key}.res2", y, 0.1, True), 2), 2)
    z = net.chain("contextual_hyper_prior_encoder", y / q, (1, 2, 2)).round()
    temporal = net.chain("temporal_prior_encoder", c3, (2, 2), 0.1)
    last = torch.zeros_like(y) if before.y is None else before.y
    hyper = torch.cat([temporal, net.hyper_dec("contextual_hyper_prior_decoder", z), last], 1)
    y_hat, bits = net.code(y, hyper, ("y_prior_fusion", "y_spatial_prior"), q, laplace_likelihood)

    key = "contextual_decoder"
    t = torch.cat([net.up(f"{key}.up2", net.up(f"{key}.up1", y_hat)), c3], 1)
    t = torch.cat([net.up(f"{key}.up3", net.res(f"{key}.res1", t, 0.1, True)), c2], 1)
    t = net.up(f"{key}.up4", net.res(f"{key}.res2", t, 0.1, True))
    key = "recon_generation_net"
    feature = net.unet(f"{key}.unet_1", net.conv(f"{key}.first_conv", torch.cat([t, c1], 1)))
    feature = net.unet(f"{key}.unet_2", feature)
    frame = net.conv(f"{key}.recon_conv", feature).clamp(0, 1)
    return HEMState(frame, feature, y_hat, mv_hat), mv_bits, bits


@torch.no_grad()
def test_single_frames_are_coded_as_described(hem: VideoCodec, clip: list[Tensor]):
    out = hem.intra(clip[0], torch.tensor([0.8]))
    x_hat, bits = described_image(hem.intra.state_dict(), clip[0], 0.8)
    torch.testing.assert_close(out["x_hat"], x_hat, atol=1e-5, rtol=1e-5)
    assert float(out["bpp_y"]) * clip[0][0, 0].numel() == pytest.approx(float(bits), rel=1e-5)
    assert out["latents"]["y"].y.sub(out["latents"]["y"].means).round().unique().numel() > 5


@torch.no_grad()
def test_predicted_frames_are_coded_as_described(hem: VideoCodec, clip: list[Tensor]):
    weights = hem.inter.state_dict()
    state = hem.inter.start(clip[0])
    for x in clip[1:4]:  # the second one reads all of the state
        out = hem.inter(x, state, torch.tensor([STEPS]))
        expected, mv_bits, bits = described_frame(weights, x, state, STEPS)
        state = out["state"]
        for ours, theirs in zip(state.fields, expected.fields, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        pixels = x[0, 0].numel()
        assert float(out["bpp_mv_y"]) * pixels == pytest.approx(float(mv_bits), rel=1e-5)
        assert float(out["bpp_y"]) * pixels == pytest.approx(float(bits), rel=1e-5)
        assert float(mv_bits) > 100 and float(bits) > 100  # there is something to compare
