"""A drawing surface in the units of a head, seen from the pose that the head is in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Points = NDArray[np.float64]  # [points, 2]: x to the right and y down, from the middle of the head

SUPERSAMPLING = 2
HEAD_HEIGHT = 1.3  # of half a head, whose half width is 1


@dataclass(frozen=True)
class Pose:
    """Angles in radians; place of the head's middle and half its width as shares of the image's side."""

    roll: float
    yaw: float
    pitch: float
    x: float
    y: float
    scale: float


class Canvas:
    """Polygons and lines in head units on a square image."""

    def __init__(self, background: Image.Image, pose: Pose) -> None:
        self.side = background.width * SUPERSAMPLING
        self._image = background.resize((self.side, self.side), Image.Resampling.BILINEAR)
        self._draw = ImageDraw.Draw(self._image)
        self._pose = pose

    def polygon(self, points: ArrayLike, colour: Colour, turns: bool = True) -> None:
        """turns: whether it lies on the face and turns with it; the outline of the head doesn't."""
        self._draw.polygon(self._pixels(points, turns), fill=colour)

    def line(self, points: ArrayLike, colour: Colour, width: float, turns: bool = True) -> None:
        """width: in head units."""
        pixels = self._pixels(points, turns)
        thick = max(1, round(width * self._pose.scale * self.side))
        self._draw.line(pixels, fill=colour, width=thick, joint="curve")

    def finished(self) -> Image.Image:
        return self._image.resize((self.side // SUPERSAMPLING,) * 2, Image.Resampling.BOX)

    def _pixels(self, points: ArrayLike, turns: bool) -> list[tuple[float, float]]:
        pose = self._pose
        x, y = np.asarray(points, np.float64).T
        if turns:  # on an ellipsoid
            z = np.sqrt(np.maximum(0.0, 1 - x**2 - (y / HEAD_HEIGHT) ** 2))
            x, y = x * np.cos(pose.yaw) + z * np.sin(pose.yaw), y * np.cos(pose.pitch) + z * np.sin(pose.pitch)
        turned_x = x * np.cos(pose.roll) - y * np.sin(pose.roll)
        turned_y = x * np.sin(pose.roll) + y * np.cos(pose.roll)
        pixels = (np.stack([turned_x, turned_y], 1) * pose.scale + (pose.x, pose.y)) * self.side
        return [(float(px), float(py)) for px, py in pixels]


def ellipse(x: float, y: float, width: float, height: float, points: int = 40, power: float = 2.0) -> Points:
    """width, height: half of each. power above 2 makes it squarer."""
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    c, s = np.cos(angle), np.sin(angle)
    bend = 2 / power
    return np.stack([x + width * np.sign(c) * np.abs(c) ** bend, y + height * np.sign(s) * np.abs(s) ** bend], 1)


def curve(points: Sequence[tuple[float, float]], steps: int = 16) -> Points:
    """A smooth curve through three points."""
    (x0, y0), (x1, y1), (x2, y2) = points
    t = np.linspace(0, 1, steps)
    # Quadratic Bézier whose middle passes through the second point.
    cx, cy = 2 * x1 - (x0 + x2) / 2, 2 * y1 - (y0 + y2) / 2
    a, b, c = (1 - t) ** 2, 2 * t * (1 - t), t**2
    return np.stack([a * x0 + b * cx + c * x2, a * y0 + b * cy + c * y2], 1)


def shade(colour: Colour, factor: float) -> Colour:
    """Darker below 1, lighter above."""
    r, g, b = (int(np.clip(channel * factor, 0, 255)) for channel in colour)
    return r, g, b


def blend(one: Colour, other: Colour, share: float) -> Colour:
    """share: of the other."""
    r, g, b = (int(a + (c - a) * share) for a, c in zip(one, other, strict=True))
    return r, g, b
