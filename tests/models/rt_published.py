"""DCVC-RT once more, straight from its description: what the models are compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsecodec.nn.rt_state import RTState


class Functional:
    """DCVC-RT written out from its published description, on the keys of a state dict, with masks and sums."""

    def __init__(self, state: dict[str, Tensor], qp: int, skip: float | None) -> None:
        self.state, self.qp, self.skip = state, qp, skip

    def conv(self, key: str, x: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
        weight = self.state[f"{key}.weight"]
        padding = weight.shape[-1] // 2 if weight.shape[-1] % 2 else 0
        return F.conv2d(x, weight, self.state[f"{key}.bias"], stride, padding, 1, groups)

    def bank(self, name: str) -> Tensor:
        return self.state[name][self.qp][None]

    def block(self, key: str, x: Tensor, shortcut: bool = False) -> Tensor:
        def act(t: Tensor) -> Tensor:
            return t * torch.sigmoid(4 * t)

        x = self.conv(f"{key}.adaptor", x) if f"{key}.adaptor.weight" in self.state else x
        t = act(self.conv(f"{key}.dc.0", x))
        out = self.conv(f"{key}.dc.3", self.conv(f"{key}.dc.2", t, groups=t.shape[1])) + x
        h = act(self.conv(f"{key}.ffn.0", out))
        half = h.shape[1] // 2
        out = self.conv(f"{key}.ffn.2", h[:, :half] + h[:, half:]) + out
        return out + x if shortcut else out

    def row(self, key: str, x: Tensor) -> Tensor:
        """A Sequential of blocks, with a last conv or without."""
        for i in range(99):
            if f"{key}.{i}.dc.0.weight" in self.state:
                x = self.block(f"{key}.{i}", x)
            elif f"{key}.{i}.down.weight" in self.state:
                x = self.down(f"{key}.{i}", x)
            elif f"{key}.{i}.up.conv.0.weight" in self.state:
                x = self.block(f"{key}.{i}.conv", F.pixel_shuffle(self.conv(f"{key}.{i}.up.conv.0", x), 2), True)
            elif f"{key}.{i}.weight" in self.state:
                x = self.conv(f"{key}.{i}", x, 2 if key.startswith("enc") else 1)
        return x

    def down(self, key: str, x: Tensor) -> Tensor:
        return self.block(f"{key}.conv", self.conv(f"{key}.down", x, 2), True)

    def hyper(self, key: str, y: Tensor) -> Tensor:
        y = F.pad(y, (0, -y.shape[3] % 4, 0, -y.shape[2] % 4), mode="replicate")
        return self.row(key, y).round().clamp(-128, 127)

    def steps(self, y: Tensor, scales: Tensor, means: Tensor, masks: list[Tensor], refine) -> Tensor:
        y_hat = torch.zeros_like(y)
        for t, mask in enumerate(masks):
            if t:
                scales, means = refine(t, y_hat).chunk(2, 1)
            symbols = ((y - means * mask) * mask).round()
            if self.skip is not None:
                symbols = symbols * (scales * mask > self.skip)
            y_hat = y_hat + symbols.clamp(-128, 127) + means * mask
        return y_hat

    def masks(self, y: Tensor, table: tuple[tuple[int, ...], ...], cell) -> list[Tensor]:
        masks = []
        for step in table:
            mask = torch.zeros_like(y)
            for group, part in zip(step, mask.chunk(len(step), 1), strict=True):
                for h in range(y.shape[2]):
                    for w in range(y.shape[3]):
                        part[:, :, h, w] = cell(h, w) == group
            masks.append(mask)
        return masks

    def intra(self, x: Tensor) -> Tensor:
        y = self.row("enc.enc_2", self.block("enc.enc_1", F.pixel_unshuffle(x, 8)) * self.bank("q_scale_enc"))
        prior = self.row("y_prior_fusion", self.row("hyper_dec", self.hyper("hyper_enc", y)))
        prior = prior[:, :, : y.shape[2], : y.shape[3]]
        reduced = self.conv("y_spatial_prior_reduction", prior)
        gain, step = (0.5 + 1.5 * torch.sigmoid(prior[:, i : i + 1]) for i in (0, 1))
        table = ((0, 1, 2, 3), (3, 2, 1, 0), (2, 3, 0, 1), (1, 0, 3, 2))
        masks = self.masks(y, table, lambda h, w: 2 * (h % 2) + w % 2)

        def refine(t: int, y_hat: Tensor) -> Tensor:
            adapted = self.block(f"y_spatial_prior_adaptor_{t}", torch.cat([y_hat, reduced], 1))
            return self.row("y_spatial_prior", adapted)

        y_hat = self.steps(y * gain, *prior[:, 2:].chunk(2, 1), masks, refine)
        t = self.row("dec.dec_1", y_hat * step) * self.bank("q_scale_dec")
        return F.pixel_shuffle(self.block("dec.dec_2", t), 8).clamp(0, 1)

    def inter(self, x: Tensor, state: RTState) -> tuple[Tensor, Tensor]:
        if state.feature is None:
            f = self.block("feature_adaptor_i", F.pixel_unshuffle(state.frame, 8))
        else:
            f = self.conv("feature_adaptor_p", state.feature)
        a = self.row("feature_extractor.conv1", f)
        context, temporal = self.row("feature_extractor.conv2", a), a * self.bank("q_feature")
        patches = self.conv("encoder.conv1", F.pixel_unshuffle(x, 8))
        t = self.block("encoder.conv3", self.row("encoder.conv2", torch.cat([patches, context], 1)))
        y = self.conv("encoder.down", t * self.bank("q_encoder"), 2)
        temporal = self.down("temporal_prior_encoder", temporal)
        hyper = self.row("hyper_decoder.conv", self.hyper("hyper_encoder.conv", y))
        hyper = hyper[:, :, : y.shape[2], : y.shape[3]]
        prior = self.row("y_prior_fusion.conv", torch.cat([hyper, temporal], 1))
        step, scales, means = prior.chunk(3, 1)
        step = step.clamp(min=0.5)
        masks = self.masks(y, ((0, 1), (1, 0)), lambda h, w: (h + w) % 2)

        def refine(t: int, y_hat: Tensor) -> Tensor:
            return self.row("y_spatial_prior.conv", torch.cat([y_hat, prior], 1))

        y_hat = self.steps(y * (1 / step), scales, means, masks, refine) * step
        up = F.pixel_shuffle(self.conv("decoder.up.conv.0", y_hat), 2)
        feature = self.conv("decoder.conv2", self.row("decoder.conv1", torch.cat([up, context], 1)))
        feature = feature * self.bank("q_decoder")
        t = self.row("recon_generation_net.conv", feature) * self.bank("q_recon")
        return F.pixel_shuffle(self.conv("recon_generation_net.head", t), 8).clamp(0, 1), feature
