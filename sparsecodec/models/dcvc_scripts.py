"""What the script of DCVC's published software calls beside compress and decompress."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsecodec.entropy import FrameFile
from sparsecodec.models.inputs import check_picture, check_state
from sparsecodec.nn.dcvc_coder import STRIDE

FILE = "dcvc-inter"  # kind of the published software's file of a frame


class DCVCScripts:
    """Of the codec of predicted frames."""

    def load_dict(self, pretrained_dict: Mapping[str, Any]) -> Any:
        """`load_state_dict` by the published name."""
        return self.load_state_dict(pretrained_dict)

    def update(self, force: bool = False) -> None:
        """Does nothing: tables are computed where they are needed. Part of the published interface."""

    def estimate(self, ref_frame: Tensor, input_image: Tensor) -> dict[str, Tensor]:
        """What `forward` answers to two tensors, as in the published software: a frame with an estimated rate.

        Args:
            ref_frame: ``[N, 3, H, W]`` float in [0, 1]. The reconstruction before.
            input_image: same shape. The frame, RGB; H and W multiples of 64.

        Returns:
            ``bpp_mv_y``, ``bpp_mv_z``, ``bpp_y``, ``bpp_z`` and their sum ``bpp``: one number each, the mean over the
            frames; ``recon_image``: ``[N, 3, H, W]``, not clamped, which the caller does; ``context``:
            ``[N, feature, H, W]``. New memory.

        Raises:
            UsageError: other shapes.
        """
        check_picture(input_image, STRIDE)
        check_state({"ref_frame": (ref_frame, tuple(input_image.shape))})
        coded = self.predicted(input_image, ref_frame)
        rates = {name: value.mean() for name, value in coded.rates.items() if name != "bit"}
        own = {"memory_format": torch.contiguous_format, "copy": True}  # a compiled network's buffer serves again
        kept = {"recon_image": coded.x_hat, "context": coded.context}
        return {**rates, **{name: value.to(input_image.dtype, **own) for name, value in kept.items()}}

    def encode_decode(self, ref_frame: Tensor, input_image: Tensor, output_path: str | Path) -> dict[str, Any]:
        """Codes a frame into a file and reads it back: `compress`' rates, and ``recon_image`` as decoded from the file.

        Args:
            ref_frame, input_image: as for `compress`.
            output_path: where to write, as the published software does.
        """
        height, width = input_image.shape[-2:]
        coded = self.compress(ref_frame, input_image)
        strings = tuple(coded[f"{name}_string"] for name in ("mv_y", "mv_z", "y", "z"))
        path = Path(output_path)
        path.write_bytes(FrameFile(FILE, {"height": height, "width": width}, strings).to_bytes())
        rates = {name: value for name, value in coded.items() if name.startswith("bpp")}
        return {**rates, "recon_image": self.decode(ref_frame, path)}

    def decode(self, ref_frame: Tensor, input_path: str | Path) -> Tensor:
        """The frame in a file of `encode_decode`, given the frame before it, ``[1, 3, H, W]`` in [0, 1].

        Raises:
            BitstreamError: as for `decompress`, or no such file.
        """
        file = FrameFile.from_bytes(FILE, Path(input_path).read_bytes())
        return self.decompress(ref_frame, *file.strings, file.fields["height"], file.fields["width"])
