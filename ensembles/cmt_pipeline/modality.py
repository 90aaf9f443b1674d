"""The three modalities, always in this order: image, audio, text."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from typing import Literal, get_args

Modality = Literal["image", "audio", "text"]

MODALITIES: tuple[Modality, ...] = get_args(Modality)

#: The seven non-empty subsets, all three first, then pairs, then single modalities.
SUBSETS: tuple[tuple[Modality, ...], ...] = tuple(
    subset for size in (3, 2, 1) for subset in combinations(MODALITIES, size)
)


def ordered(modalities: Iterable[str]) -> tuple[Modality, ...]:
    """The given modalities in contract order. ValueError for an unknown one or for none."""
    given = set(modalities)
    unknown = given - set(MODALITIES)
    if unknown or not given:
        got = ", ".join(sorted(given)) or "none"
        raise ValueError(f"modalities: got {got}; expected one or more of {', '.join(MODALITIES)}")
    return tuple(m for m in MODALITIES if m in given)
