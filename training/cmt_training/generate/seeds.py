"""Random numbers that depend on what they are drawn for alone."""

from __future__ import annotations

import hashlib

import numpy as np


def rng_of(seed: int, *names: str | int) -> np.random.Generator:
    """A stream of its own for each thing that is drawn, whatever else is drawn."""
    digest = hashlib.sha256("/".join(map(str, (seed, *names))).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))
