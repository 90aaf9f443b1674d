"""The images that `make images` built on this machine."""

from __future__ import annotations

from pathlib import Path

from cmt_perf.images.__main__ import IMAGES
from cmt_perf.images.build import built

FOLDER = Path(__file__).parents[1] / ".cmt" / "images"


def image_of(name: str) -> list[Path]:
    """The layers of an image that `make images` built here, topmost first; none where it didn't."""
    try:
        return built(IMAGES[name], FOLDER)
    except FileNotFoundError:
        return []
