"""EVC with several small encoders for one decoder (residual representation learning, arXiv 2302.05071).

The latent of prefix k averages the encoders 0 to k; a decoder cannot tell which prefix made its payload. Attribute
names follow the published models: ``encs.0``, ``encs.1``, ... in the place of ``enc``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsecodec.errors import UsageError
from sparsecodec.models.dual_prior_image import STRIDE
from sparsecodec.models.evc import EVC, LAMBDAS, decoder_preset, encoder_preset
from sparsecodec.models.fitting import Weights, numbered
from sparsecodec.models.inputs import check_coded, check_picture, whole

ENCODERS = 4  # of the published models


class ScalableEVC(EVC):
    """EVC image codec whose encoder can be cut short.

    ``y_k = (sum_{i<k} sg[e_i(x)] + e_k(x)) / (k + 1)``

    Whoever encodes spends as many encoders as there is time for, or has every prefix tried and keeps the best. Payloads
    are those of an EVC with the same decoder and entropy networks.

    A new model's encoders are equal, so that every prefix computes what the first encoder does.

    Args:
        encoder: width preset of each encoder, a key of `EVC_WIDTHS`.
        decoder: width preset of the decoder.
        encoders: how many.

    Attributes:
        rate: see `set_rate`.

    Raises:
        UsageError: no encoder at all; or as `EVC`.
    """

    family = "scalable-evc"
    SIGNATURE = ("encs.0.1.block.0.depth_conv.0.weight", *EVC.SIGNATURE[1:])
    rate: int | None = None

    def __init__(self, encoder: str = "s", decoder: str = "l", encoders: int = ENCODERS) -> None:
        if encoders < 1:
            raise UsageError(f"encoders={encoders} (needs at least 1)")
        super().__init__(encoder, decoder)
        self._set_encoders([copy.deepcopy(self.enc) for _ in range(encoders)])

    def _set_encoders(self, encoders: list[nn.Module]) -> None:
        if hasattr(self, "enc"):
            del self.enc
        self.encs = nn.ModuleList(encoders)

    @classmethod
    def from_evc(cls, model: EVC, encoders: int = 1, encoder: str | None = None) -> ScalableEVC:
        """A copy of `model`, dense or compact, with several encoders.

        A `compact_config` that it carries is carried on, for the new paths of the encoders.

        Args:
            model: gives everything behind the encoder.
            encoders: how many, all equal.
            encoder: width preset of new ones, with random weights; None copies that of `model`.

        Raises:
            UsageError: `model` is no EVC with one encoder, it is pruned where a new one should stand; or as the class.
        """
        if not isinstance(model, EVC) or isinstance(model, ScalableEVC):
            raise UsageError(f"{type(model).__name__} (needs an EVC with one encoder)")
        config = getattr(model, "compact_config", None)
        if encoder is not None and config is not None and "enc" in config["transforms"]:
            raise UsageError(f"encoder={encoder!r}: that of the model is pruned (needs None, to keep it)")
        scalable = cls(encoder or model.presets[0], model.presets[1], encoders)
        if encoder is None:
            scalable._set_encoders([copy.deepcopy(model.enc) for _ in range(encoders)])
        for name, child in model.named_children():
            if name != "enc":
                setattr(scalable, name, copy.deepcopy(child))
        scalable.q_basic, scalable.q_scale = (nn.Parameter(p.detach().clone()) for p in (model.q_basic, model.q_scale))
        if config is not None:
            scalable.compact_config = _moved(config, "enc", [f"encs.{i}" for i in range(encoders)])
        return scalable.train(model.training)

    def extended(self) -> ScalableEVC:
        """A copy with one more encoder, which starts as the last one."""
        longer = copy.deepcopy(self)
        longer.encs.append(copy.deepcopy(longer.encs[-1]))
        if hasattr(longer, "compact_config"):
            last, new = f"encs.{len(self.encs) - 1}", f"encs.{len(self.encs)}"
            longer.compact_config = _moved(longer.compact_config, last, [last, new])
        return longer

    @property
    def config(self) -> dict[str, Any]:
        return {**super().config, "encoders": len(self.encs)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ScalableEVC:
        return cls(config["encoder"], config["decoder"], config["encoders"])

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> ScalableEVC:
        """As `EVC.from_state_dict`; the encoders may be pruned differently."""
        state = Weights(state)
        presets = encoder_preset(state, "encs.0"), decoder_preset(state)
        return cls._filled(state, *presets, numbered(state, "encs.{}.6.weight"))

    def adopt(self, foreign: nn.Module) -> None:
        """As `EVC.adopt`, and takes over the rate.

        Raises:
            UsageError: `foreign` was built for one prefix only.
        """
        super().adopt(foreign)
        prefix = getattr(foreign, "forward_enc_id", None)
        if prefix is not None:
            raise UsageError(
                f"{type(foreign).__name__} has forward_enc_id={prefix}: one prefix for every call, which a scalable "
                f"codec cannot take over (needs None; here it is compress(x, q_scale, prefix={prefix}))"
            )
        self.set_rate(getattr(foreign, "rate", None))

    def set_rate(self, rate: int | None) -> None:
        """Chooses by which anchor's lambda prefixes are compared, whatever the step.

        Args:
            rate: index of the anchor; None: by `lambda_of` of the step.

        Raises:
            UsageError: no such anchor.
        """
        self.rate = None if rate is None else whole(rate, "rate", len(LAMBDAS))

    def latent(self, x: Tensor, prefix: int | None = None) -> Tensor:
        """``[N, 3, H, W]`` -> ``y_k [N, C, H/16, W/16]`` of ``k = prefix``, None for all encoders.

        Only encoder k receives a gradient.
        """
        k = self.check_prefix(len(self.encs) - 1 if prefix is None else prefix)
        with torch.no_grad():
            earlier = sum(encoder(x).to(x.dtype) for encoder in self.encs[:k])
        return (earlier + self.encs[k](x).to(x.dtype)) / (k + 1)

    def forward(self, x: Tensor, q_scale: Tensor | float, prefix: int | None = None) -> dict[str, Tensor]:
        """As `EVC.forward`, through the encoders 0 to `prefix` (None: all of them)."""
        check_picture(x, STRIDE)
        return self._code(x, self.latent(x, prefix), q_scale)

    @torch.no_grad()
    def compress(self, x: Tensor, q_scale: float, prefix: int | None = None) -> dict[str, Any]:
        """As `EVC.compress`, through the encoders 0 to `prefix`; None tries every prefix and keeps the cheapest.

        Returns:
            ``bit_stream``, ``x_hat`` as `EVC.compress`; ``prefix``: the one that was used.
        """
        check_coded(x, STRIDE, self.encs)
        q_scale = self.round_q_scale(q_scale)
        if prefix is not None:
            return {**self._compress(self.latent(x, prefix), q_scale), "prefix": prefix}
        candidates, total = [], 0.0
        for k, encoder in enumerate(self.encs):
            total = total + encoder(x)
            candidates.append({**self._compress(total / (k + 1), q_scale), "prefix": k})
        return min(candidates, key=lambda coded: self.cost(coded["bit_stream"], coded["x_hat"], x, q_scale))

    def cost(self, payload: bytes, x_hat: Tensor, x: Tensor, q_scale: float) -> float:
        """``lambda * 255^2 * MSE + bpp`` of a coded picture, on its real bytes.

        Args:
            payload: of the whole picture.
            x_hat, x: ``[1, 3, H, W]`` in [0, 1]: as it will be decoded, and as it should be.
            q_scale: that it was coded with; see `lambda_of` and `set_rate`.
        """
        weight = self.lambda_of(q_scale) if self.rate is None else LAMBDAS[self.rate]
        bpp = 8 * len(payload) / (x.shape[-2] * x.shape[-1])
        return weight * 255**2 * float((x_hat - x).square().mean()) + bpp

    def lambda_of(self, q_scale: float) -> float:
        """The lambda that a global step stands for.

        Log lambda is linear in log step between neighbouring anchors, and that of the outer anchors beyond them.
        """
        steps = self.q_scale.detach().flatten().double().cpu().log().numpy()
        order = np.argsort(steps)
        return float(np.exp(np.interp(np.log(q_scale), steps[order], np.log(LAMBDAS)[order])))

    def check_prefix(self, prefix: int) -> int:
        """`prefix` itself.

        Raises:
            UsageError: there is no such encoder.
        """
        if isinstance(prefix, bool) or not isinstance(prefix, int) or not 0 <= prefix < len(self.encs):
            raise UsageError(f"prefix={prefix} (needs 0 to {len(self.encs) - 1}: there are {len(self.encs)} encoders)")
        return prefix


def _moved(config: Mapping[str, Any], old: str, new: list[str]) -> dict[str, Any]:
    """A `sparsity.compact_config` whose transform `old` stands, with the same masks, at every path of `new`."""

    def copies(name: str) -> list[str]:
        label, colon, path = name.rpartition(":")  # "branch:<layer>"
        if path.startswith(f"{old}."):
            return [f"{label}{colon}{place}{path.removeprefix(old)}" for place in new]
        return [name]

    transforms = [place for path in config["transforms"] for place in (new if path == old else [path])]
    kept = {place: entry for name, entry in config["kept"].items() for place in copies(name)}
    return {**config, "transforms": transforms, "kept": kept}
