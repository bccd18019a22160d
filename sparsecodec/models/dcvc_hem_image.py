"""DCVC-HEM's codec of single frames, `IntraNoAR` (arXiv 2207.05894): EVC's entropy model behind residual networks.

Attribute names follow the published checkpoints, so those load unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sparsecodec.models.dcvc_hem_scripts import ImageScripts
from sparsecodec.models.dual_prior_image import STRIDE, DualPriorImage
from sparsecodec.models.fitting import Weights, filled
from sparsecodec.models.inputs import check_picture
from sparsecodec.models.steps import steps_of
from sparsecodec.nn.hem_inter import HEM_INTRA_LAYOUT
from sparsecodec.nn.hem_layers import (
    UNET_WIDTHS,
    UNet,
    conv3x3,
    hyper_decoder,
    hyper_encoder,
    prior_network,
    strided_encoder,
    subpel_decoder,
)


@dataclass(frozen=True)
class HEMImageWidths:
    """Channels.

    Attributes:
        latent: of the latent and of the hyper-latent; even.
        refine: between the decoder and the refining network.
        unet: inside that network at 1/1, 1/2 and 1/4.
        transform: inside both transforms; None, as published: those of the latent.
    """

    latent: int = 192
    refine: int = 16
    unet: tuple[int, int, int] = UNET_WIDTHS
    transform: int | None = None


# Kodak's pictures keep 27.6 dB in the best 48 of the 768 components of 16x16 blocks, before any quantisation, 30 in 80.
HEM_IMAGE_TINY = HEMImageWidths(latent=80, refine=8, unet=(8, 16, 32), transform=48)


class DCVCHEMImage(ImageScripts, DualPriorImage):
    """Codec of single frames.

    Args:
        widths: of the networks; the published ones by default.
    """

    family = "dcvc-hem-image"
    LAYOUT: ClassVar = HEM_INTRA_LAYOUT
    SIGNATURE = ("refine.0.conv1.up_dim.weight", "enc.0.downsample.weight", "y_spatial_prior.4.weight", "q_basic")

    def __init__(self, widths: HEMImageWidths = HEMImageWidths()) -> None:
        super().__init__()
        self.widths = widths
        n, inside = widths.latent, widths.transform or widths.latent
        self.enc = strided_encoder(3, inside, n)
        self.dec = subpel_decoder(n, inside, widths.refine)
        self.refine = nn.Sequential(UNet(widths.refine, widths.refine, widths.unet), conv3x3(widths.refine, 3))
        self.hyper_enc = hyper_encoder(n, n)
        self.hyper_dec = hyper_decoder(n, n)
        self.y_prior_fusion = prior_network(2 * n, 3 * n, 3 * n, 3 * n)
        self.y_spatial_prior = prior_network(4 * n, 3 * n, 3 * n, 2 * n)
        self._add_rates(n)

    @property
    def config(self) -> dict[str, Any]:
        return {"family": self.family, **asdict(self.widths), "unet": list(self.widths.unet)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> DCVCHEMImage:
        """Builds the architecture that `config` describes, with random weights."""
        return cls(HEMImageWidths(config["latent"], config["refine"], tuple(config["unet"]), config.get("transform")))

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> DCVCHEMImage:
        """A model of the widths and with the weights of `state`, which may be pruned; in eval mode.

        Raises:
            UsageError: keys are missing or unknown, or the widths do not fit together.
        """
        state = Weights(state)
        unet = tuple(state[f"refine.0.conv{i}.up_dim.weight"].shape[0] for i in (1, 2, 3))
        latent, inside = state["q_basic"].shape[1], state["enc.0.downsample.weight"].shape[0]
        widths = HEMImageWidths(latent, state["refine.1.weight"].shape[1], unet, None if inside == latent else inside)
        return filled(lambda: cls(widths), state, lambda model: model(torch.zeros(1, 3, STRIDE, STRIDE), 0))

    def synthesise(self, y_hat: Tensor) -> Tensor:
        return self.refine(self.dec(y_hat))

    def forward(self, x: Tensor, rate: int | Tensor) -> dict[str, Any]:
        """One pass with an estimated rate; see `EVC.forward`.

        Args:
            x: ``[N, 3, H, W]`` float, RGB in [0, 1]; H and W multiples of 64.
            rate: index of an anchor, ``[N]`` of them, or ``[N]`` steps; see `steps_of`.

        Returns:
            ``x_hat``, ``bpp``, ``bpp_y``, ``bpp_z``, ``bit``, ``latents`` as `EVC.forward`.
        """
        check_picture(x, STRIDE)
        return self._code(x, self.enc(x), steps_of(self.q_scale, rate, len(x)))

    @torch.no_grad()
    def decompress(self, bit_stream: bytes, height: int, width: int, q_scale: float) -> dict[str, Tensor]:
        """A payload to the picture; the inverse of `compress` on the same machine and thread count.

        Args:
            bit_stream: from `compress`.
            height, width: of the picture before padding.
            q_scale: as given to `compress`.

        Returns:
            ``x_hat``: ``[1, 3, H, W]`` in [0, 1], still padded to multiples of 64: the next frame is predicted from it.

        Raises:
            BitstreamError: the payload is damaged or belongs to other settings.
            UsageError: a size below 1.
        """
        return {"x_hat": self._decompress(bit_stream, height, width, q_scale)}
