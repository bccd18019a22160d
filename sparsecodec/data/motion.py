"""Clips made of photos: smooth synthetic motion, so that video codecs can be trained on pictures alone.

Only NumPy and Pillow: the crops of the next step are drawn in a thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Window = Callable[[int, int, int, int], np.ndarray]  # top, left, height, width -> [height, width, 3] uint8

FASTEST = 1 / 12  # of the crop's side a frame
SLOWEST = 1 / 2000
TURN = math.radians(1.5)  # standard deviations, a frame
ZOOM = 0.012
SHEAR = 0.004
STILL = 0.25  # share of clips whose background does not move at all
PIECES = (0.3, 0.4, 0.3)  # probabilities of no, one and two moving pieces
SOFT = 6  # pixels of transparent border around a piece, less for small ones, so that its edge can be soft


@dataclass(frozen=True)
class Path:
    """A smooth motion; frame t reads its source at ``centre + A(t) (pixel - centre of the frame) + shift(t)``.

    Attributes:
        velocity, acceleration: ``(x, y)``, pixels a frame and pixels a frame^2.
        turn: radians a frame.
        zoom: logarithm of the scale, a frame.
        shear: a frame.
    """

    velocity: tuple[float, float]
    acceleration: tuple[float, float]
    turn: float
    zoom: float
    shear: float

    @classmethod
    def drawn(cls, draw: np.random.Generator, crop: int) -> Path:
        """A random one: speeds are as likely in one octave as in another, up to a twelfth of the crop a frame."""
        speed = crop * math.exp(draw.uniform(math.log(SLOWEST), math.log(FASTEST)))
        angle = draw.uniform(0, 2 * math.pi)
        push, pushed = 0.15 * speed * draw.normal(), draw.uniform(0, 2 * math.pi)
        amounts = draw.normal(size=3) * (draw.random(3) < 0.5)
        return cls(
            (speed * math.cos(angle), speed * math.sin(angle)),
            (push * math.cos(pushed), push * math.sin(pushed)),
            *(float(amount) for amount in amounts * (TURN, ZOOM, SHEAR)),
        )

    def slowed(self, factor: float) -> Path:
        """The same motion at `factor` times its speed."""
        x, y = self.velocity
        ax, ay = self.acceleration
        rest = (value * factor for value in (self.turn, self.zoom, self.shear))
        return Path((x * factor, y * factor), (ax * factor, ay * factor), *rest)

    def matrix(self, t: float) -> tuple[np.ndarray, np.ndarray]:
        """``A(t)`` ``[2, 2]`` and ``shift(t)`` ``[2]``."""
        c, s, scale = math.cos(self.turn * t), math.sin(self.turn * t), math.exp(self.zoom * t)
        turned = scale * np.array([[c, -s], [s, c]]) @ np.array([[1.0, self.shear * t], [0.0, 1.0]])
        return turned, np.array(self.velocity) * t + 0.5 * np.array(self.acceleration) * t * t

    def affine(self, t: float, source: float, target: tuple[float, float]) -> tuple[float, ...]:
        """Pillow's six numbers: frame pixels to those of a square source of side `source`, centre upon `target`."""
        turned, shift = self.matrix(t)
        offset = source / 2 + shift - turned @ np.array(target)
        (a, b), (c, d) = turned
        return a, b, float(offset[0]), c, d, float(offset[1])

    def excursion(self, length: int, crop: int) -> float:
        """How far outside a centred square of side `crop` the frames read, pixels."""
        half = crop / 2
        corners = np.array([[-half, -half], [-half, half], [half, -half], [half, half]])
        reach = 0.0
        for t in range(length):
            turned, shift = self.matrix(t)
            reach = max(reach, float(np.abs(corners @ turned.T + shift).max()))
        return reach - half


def moving_clip(
    draw: np.random.Generator, windows: list[tuple[Window, int, int]], crop: int, length: int
) -> np.ndarray:
    """One clip: a photo that is panned, turned and zoomed, with pieces of photos that move before it.

    Sampling is bicubic at fractions of a pixel. Some clips drift in brightness, go out of focus or carry noise that is
    new in every frame. A frame never shows what lies outside its photo: motion that would is slowed down.

    Args:
        draw: all randomness; the result depends on nothing else.
        windows: of each photo (window, height, width), sides at least `crop`; the first is the background, the others
            give the pieces, as many as there are.
        crop: side of the frames, pixels.
        length: number of frames.

    Returns:
        ``[length, crop, crop, 3]`` uint8.
    """
    background = _cut(draw, *windows[0], 2 * crop, crop)
    motion = Path.drawn(draw, crop)
    motion = motion.slowed(0.0 if draw.random() < STILL else _allowed(motion, length, crop, background.width))
    pieces = [_Piece.drawn(draw, window, crop) for window in windows[1:]]
    gain = draw.normal() * 0.01 if draw.random() < 0.3 else 0.0
    blur, blurring = (draw.uniform(0, 1.2), 0.2 * draw.normal()) if draw.random() < 0.2 else (0.0, 0.0)
    noise = draw.uniform(0.5, 3) if draw.random() < 0.3 else 0.0
    frames = []
    for t in range(length):
        affine = motion.affine(t, background.width, (crop / 2, crop / 2))
        frame = background.transform((crop, crop), Image.Transform.AFFINE, affine, Image.Resampling.BICUBIC)
        for piece in pieces:
            piece.paste(frame, t)
        if (radius := blur + blurring * t) > 0.2:
            frame = frame.filter(ImageFilter.GaussianBlur(radius))
        pixels = np.asarray(frame)
        if gain or noise:
            values = pixels * np.float32(1 + gain * t)
            if noise:
                values += noise * draw.standard_normal(values.shape, np.float32)
            pixels = values.round().clip(0, 255).astype(np.uint8)
        frames.append(pixels)
    clip = np.stack(frames)
    return clip[:, :, ::-1] if draw.integers(2) else clip


def number_of_pieces(draw: np.random.Generator) -> int:
    """How many pieces the next clip shall have."""
    return int(draw.choice(len(PIECES), p=PIECES))


@dataclass(frozen=True)
class _Piece:
    """A cut-out with a soft edge that moves across the frame. `image` is RGBA and square."""

    image: Image.Image
    motion: Path
    centre: tuple[float, float]

    @classmethod
    def drawn(cls, draw: np.random.Generator, window: tuple[Window, int, int], crop: int) -> _Piece:
        side = int(draw.uniform(0.2, 0.7) * crop)
        image = _cut(draw, *window, side, side)
        mask, soft = Image.new("L", image.size), min(SOFT, side // 4)
        angles = np.sort(draw.uniform(0, 2 * math.pi, 8))
        radii = draw.uniform(0.5, 1.0, 8) * (side / 2 - soft)
        outline = side / 2 + np.stack([radii * np.cos(angles), radii * np.sin(angles)], 1)
        if draw.integers(2):
            ImageDraw.Draw(mask).polygon([tuple(point) for point in outline.tolist()], fill=255)
        else:
            top = soft + side * draw.uniform(0, 0.2)
            ImageDraw.Draw(mask).ellipse((soft, top, side - soft, side - soft), fill=255)
        image.putalpha(mask.filter(ImageFilter.GaussianBlur(draw.uniform(0.5, 2.0))))
        x, y = draw.uniform(0.1, 0.9, 2) * crop
        return cls(image, Path.drawn(draw, crop), (float(x), float(y)))

    def paste(self, frame: Image.Image, t: int) -> None:
        affine = self.motion.affine(t, self.image.width, self.centre)
        placed = self.image.transform(frame.size, Image.Transform.AFFINE, affine, Image.Resampling.BICUBIC)
        frame.paste(placed, mask=placed.getchannel("A"))


def _cut(draw: np.random.Generator, window: Window, height: int, width: int, side: int, least: int) -> Image.Image:
    """A random square of a photo at a random scale, `side` pixels wide, less where the photo is small."""
    shortest = min(height, width)
    side = max(min(side, shortest), least)
    taken = int(round(math.exp(draw.uniform(math.log(side), math.log(shortest)))))
    top, left = draw.integers(height - taken + 1), draw.integers(width - taken + 1)
    image = Image.fromarray(np.ascontiguousarray(window(top, left, taken, taken)))
    return image if taken == side else image.resize((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)


def _allowed(motion: Path, length: int, crop: int, side: int) -> float:
    """The largest of 1, 3/4, 9/16 ... at which the frames stay inside the background; 0 where it has no margin."""
    margin = (side - crop) / 2 - 2  # the reach of the bicubic kernel
    factor = 1.0
    while motion.slowed(factor).excursion(length, crop) > margin:
        factor *= 0.75
        if factor < 0.01:
            return 0.0
    return factor
