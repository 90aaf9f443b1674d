"""Photographs that scikit-image carries: of a face (NASA, public domain), and of none."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from PIL import Image

_FOUND = importlib.util.find_spec("skimage")
needs_photographs = pytest.mark.skipif(_FOUND is None, reason="scikit-image isn't installed: pip install scikit-image")


WHERE = (174, 72, 276, 175)  # of the astronaut's face, seen by eye


def photograph(name: str) -> Image.Image:
    assert _FOUND is not None
    assert _FOUND.origin is not None
    return Image.open(Path(_FOUND.origin).parent / "data" / name).convert("RGB")


def astronaut() -> Image.Image:
    """Eileen Collins, 512 x 512; her face is a fifth of it wide."""
    return photograph("astronaut.png")


def crowd(*sides: int) -> tuple[Image.Image, list[tuple[float, ...]]]:
    """The astronaut's head, some pixels wide, once for each side, from left to right; where its face is in each."""
    head = astronaut().crop((124, 22, 324, 222))
    scene, boxes, left = Image.new("RGB", (40 + sum(sides) + 40 * len(sides), 40 + max(sides)), (90, 110, 90)), [], 40
    for side in sides:
        scene.paste(head.resize((side, side), Image.Resampling.BICUBIC), (left, 20))
        corner, scale = (left - 124 * side / 200, 20 - 22 * side / 200) * 2, side / 200
        boxes.append(tuple(start + scale * edge for start, edge in zip(corner, WHERE, strict=True)))
        left += side + 40
    return scene, boxes
