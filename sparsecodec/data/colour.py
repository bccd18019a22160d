"""Between the planes of a clip and the frames of a codec."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sparsecodec._clip_format import ClipFormat
from sparsecodec.errors import UsageError

Planes = tuple[np.ndarray, np.ndarray, np.ndarray]
Samples = Planes | np.ndarray  # of a frame: of a planar clip, or of a picture, [H, W, 3] uint8, R'G'B'
COLOURS = ("ycbcr", "rgb")


def to_frame(samples: Samples, form: ClipFormat, colour: str, device: torch.device | str = "cpu") -> Tensor:
    """A frame as a codec takes it.

    Chroma is brought to full size by repeating each sample. Without colour conversion (``"ycbcr"``) samples are divided
    by the largest one of their depth, whatever their range, so that nothing is lost. Pictures keep their chroma at full
    size; of R, G, B in [0, 1], Y = Kr R + Kg G + Kb B, Cb = (B - Y) / (2 (1 - Kb)) + 0.5, Cr = (R - Y) / (2 (1 - Kr)) +
    0.5.

    Args:
        samples: Y ``[H, W]``, U and V ``[ceil(H / 2), ceil(W / 2)]``, uint8 or uint16; or a picture
            ``[H, W, 3]`` uint8.
        form: of the clip; for pictures in full range.
        colour: ``"ycbcr"``, or ``"rgb"``: R'G'B' by the matrix and range of the clip, limited to [0, 1].
        device: where to convert.

    Returns:
        ``[1, 3, H, W]`` float32 in [0, 1] on `device`.
    """
    if isinstance(samples, np.ndarray):
        return _of_picture(samples, form, _checked(colour), device)
    dtype = np.uint8 if form.depth == 8 else np.int16  # torch computes with few operators on uint16
    y, u, v = (torch.tensor(plane.astype(dtype, copy=False), device=device) for plane in samples)
    if _checked(colour) == "ycbcr":
        frame = torch.empty(1, 3, form.height, form.width, device=device)
        torch.div(y, form.peak, out=frame[0, 0])
        for channel, plane in ((1, u), (2, v)):
            frame[0, channel] = _doubled(plane / form.peak, form)
        return frame
    u, v = (_doubled(plane.float(), form) for plane in (u, v))
    black, luma, middle, chroma = _levels(form)
    of_red, of_blue = form.luma_weights
    y = (y.float() - black) / luma
    red = y + (v - middle) * (2 * (1 - of_red) / chroma)
    blue = y + (u - middle) * (2 * (1 - of_blue) / chroma)
    green = (y - of_red * red - of_blue * blue) / (1 - of_red - of_blue)
    return torch.stack([red, green, blue])[None].clamp_(0, 1)


def to_planes(frame: Tensor, form: ClipFormat, colour: str) -> Planes:
    """The way back: what `to_frame` gives becomes the same planes, but for what RGB cannot show.

    A sample of chroma is the mean of the 2 x 2 (at odd edges fewer) that it stands for; all are rounded to the nearest
    integer, halves to the even one.

    Args:
        frame: ``[1, 3, H, W]`` float32 in [0, 1], H and W those of `form`; converted where it lies.

    Returns:
        Planes Y, U, V, uint8 or, for 10 bits, uint16.

    Exactness: each operator rounds once, in a fixed order, so equal frames give equal planes on every device.
    """
    if tuple(frame.shape) != (1, 3, form.height, form.width):
        raise UsageError(f"frame {tuple(frame.shape)} (needs [1, 3, {form.height}, {form.width}])")
    if _checked(colour) == "ycbcr":
        y, u, v = (channel * form.peak for channel in (frame[0, 0], *map(_halved, frame[0, 1:])))
    else:
        black, luma, middle, chroma = _levels(form)
        of_red, of_blue = form.luma_weights
        red, green, blue = frame[0]
        y = of_red * red + (1 - of_red - of_blue) * green + of_blue * blue
        u = _halved((blue - y) / (2 * (1 - of_blue))) * chroma + middle
        v = _halved((red - y) / (2 * (1 - of_red))) * chroma + middle
        y = y * luma + black
    planes = (plane.round().clamp_(0, form.peak).to(torch.int16).cpu().numpy() for plane in (y, u, v))
    y, u, v = (plane.astype(np.uint8 if form.depth == 8 else np.uint16) for plane in planes)
    return y, u, v


def to_rgb(frame: Tensor, form: ClipFormat, colour: str) -> Tensor:
    """A frame as a picture, by the matrix and range of the clip; chroma is not thinned out.

    Args:
        frame: ``[1, 3, H, W]`` float32 in [0, 1].

    Returns:
        R'G'B', ``[1, 3, H, W]`` float32 in [0, 1].
    """
    if _checked(colour) == "rgb":
        return frame
    black, luma, middle, chroma = (level / form.peak for level in _levels(form))
    if form.full_range:
        middle = 0.5  # as `_of_picture` has it; a byte has no middle
    of_red, of_blue = form.luma_weights
    y, cb, cr = frame[0]
    y = (y - black) / luma
    red = y + (cr - middle) * (2 * (1 - of_red) / chroma)
    blue = y + (cb - middle) * (2 * (1 - of_blue) / chroma)
    green = (y - of_red * red - of_blue * blue) / (1 - of_red - of_blue)
    return torch.stack([red, green, blue])[None].clamp_(0, 1)


def planes_of(samples: Samples, form: ClipFormat) -> Planes:
    """The planes of a frame; a picture's chroma is thinned out."""
    return to_planes(to_frame(samples, form, "ycbcr"), form, "ycbcr") if isinstance(samples, np.ndarray) else samples


def _of_picture(picture: np.ndarray, form: ClipFormat, colour: str, device: torch.device | str) -> Tensor:
    frame = torch.tensor(picture, device=device).permute(2, 0, 1)[None].float().div_(255)
    if colour == "rgb":
        return frame.contiguous()
    of_red, of_blue = form.luma_weights
    red, green, blue = frame[0]
    y = of_red * red + (1 - of_red - of_blue) * green + of_blue * blue
    cb = (blue - y) / (2 * (1 - of_blue)) + 0.5
    cr = (red - y) / (2 * (1 - of_red)) + 0.5
    return torch.stack([y, cb, cr])[None].clamp_(0, 1)


def _doubled(plane: Tensor, form: ClipFormat) -> Tensor:
    """Each sample repeated over 2 x 2 pixels, cut to the size of the luma."""
    rows, columns = plane.shape
    cells = plane[:, None, :, None].expand(rows, 2, columns, 2)
    return cells.reshape(2 * rows, 2 * columns)[: form.height, : form.width]


def _halved(plane: Tensor) -> Tensor:
    """Means of 2 x 2 pixels; at odd edges the last ones count twice."""
    plane = F.pad(plane[None], (0, plane.shape[1] % 2, 0, plane.shape[0] % 2), mode="replicate")[0]
    above, below = (plane[row::2, 0::2] + plane[row::2, 1::2] for row in (0, 1))
    return (above + below) * 0.25


def _levels(form: ClipFormat) -> tuple[float, float, float, float]:
    """Black, white above black, no colour, and the span of chroma."""
    unit = 1 << (form.depth - 8)
    if form.full_range:
        return 0.0, form.peak, 128.0 * unit, form.peak
    return 16.0 * unit, 219.0 * unit, 128.0 * unit, 224.0 * unit


def _checked(colour: str) -> str:
    if colour not in COLOURS:
        raise UsageError(f"colour={colour!r} (needs one of {', '.join(COLOURS)})")
    return colour
