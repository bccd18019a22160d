"""What the scripts of DCVC-HEM's published software call beside compress and decompress, for both models."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparsecodec.entropy import FrameFile
from sparsecodec.errors import UsageError
from sparsecodec.models.adopting import Adopting
from sparsecodec.models.checkpoint import read_checkpoint
from sparsecodec.models.frame_scripts import SingleFrames, given, hundredths, through


class ImageScripts(SingleFrames):
    """Of the codec of single frames."""

    @staticmethod
    def get_q_scales_from_ckpt(path: str) -> Tensor:
        """The anchors ``[4]`` of a checkpoint, without building a model.

        Raises:
            UsageError: no checkpoint of this family.
        """
        return read_checkpoint(path, "q_scale")["q_scale"].reshape(-1)

    @torch.no_grad()
    def encode_decode(
        self,
        x: Tensor,
        q_scale: float,
        output_path: str | None = None,
        pic_width: int | None = None,
        pic_height: int | None = None,
    ) -> dict[str, Any]:
        """As `SingleFrames.encode_decode`; without a path ``bit`` is an estimate, and what `forward` gives is there."""
        if output_path is None:
            out = self(x, torch.tensor([float(q_scale)], device=x.device))
            return {**out, "bit": float(out["bit"])}
        return super().encode_decode(x, q_scale, output_path, pic_width, pic_height)


class VideoScripts(Adopting):
    """Of the codec of predicted frames."""

    TABLES = ("gaussian_encoder", "bit_estimator_z_mv", "bit_estimator_z")

    @staticmethod
    def get_q_scales_from_ckpt(path: str) -> tuple[Tensor, Tensor]:
        """The anchors of a checkpoint, without building a model: of the latent, of the motion; each ``[4]``.

        Raises:
            UsageError: no checkpoint of this family.
        """
        checkpoint = read_checkpoint(path, "y_q_scale", "mv_y_q_scale")
        return checkpoint["y_q_scale"].reshape(-1), checkpoint["mv_y_q_scale"].reshape(-1)

    @torch.no_grad()
    def encode_decode(
        self,
        x: Tensor,
        dpb: Mapping[str, Tensor | None],
        output_path: str | None = None,
        pic_width: int | None = None,
        pic_height: int | None = None,
        mv_y_q_scale: float | None = None,
        y_q_scale: float | None = None,
    ) -> dict[str, Any]:
        """A frame through a file, or, without a path, through an estimate.

        Args:
            x, dpb, mv_y_q_scale, y_q_scale: as for `compress`.
            output_path: of the file of one frame.
            pic_width, pic_height: of the picture before padding.

        Returns:
            ``dpb``: the next frame's; ``bit``: of the file, or an estimate; ``decoding_time``: seconds, or 0.
        """
        if mv_y_q_scale is None or y_q_scale is None:
            raise UsageError(f"mv_y_q_scale={mv_y_q_scale}, y_q_scale={y_q_scale} (needs both)")
        if output_path is None:
            steps = torch.tensor([[float(mv_y_q_scale), float(y_q_scale)]], device=x.device)
            out = self(x, self.state_of(dpb), steps)
            bits = {name.replace("bpp", "bit"): float(out[name]) * x[0, 0].numel() for name in out if "bpp_" in name}
            return {"dpb": self.dpb_of(out["state"]), "bit": float(out["bit"]), **bits, "decoding_time": 0}
        payload = self.compress(x, dpb, mv_y_q_scale, y_q_scale)["bit_stream"]
        fields = {"mv_step": hundredths(mv_y_q_scale), "step": hundredths(y_q_scale)}
        file, bits = through(output_path, FrameFile("hem-inter", fields, (payload,)))
        steps = file.fields["mv_step"] / 100, file.fields["step"] / 100
        start = time.perf_counter()
        decoded = self.decompress(dpb, file.strings[0], given(pic_height), given(pic_width), *steps)["dpb"]
        return {"dpb": decoded, "bit": bits, "decoding_time": time.perf_counter() - start}
