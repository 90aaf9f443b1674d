"""Photographs that scikit-image carries: of a face (NASA, public domain), and of none."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from PIL import Image

_FOUND = importlib.util.find_spec("skimage")
needs_photographs = pytest.mark.skipif(_FOUND is None, reason="scikit-image isn't installed: pip install scikit-image")


def photograph(name: str) -> Image.Image:
    assert _FOUND is not None
    assert _FOUND.origin is not None
    return Image.open(Path(_FOUND.origin).parent / "data" / name).convert("RGB")


def astronaut() -> Image.Image:
    """Eileen Collins, 512 x 512; her face is a fifth of it wide."""
    return photograph("astronaut.png")
