"""Label sets. A label travels as its name, together with the name of its set; never as a bare index.

A set is looked up by its name, or is the user's own: then its name is its labels, joined by commas (`calm,angry,sad`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from cmt_pipeline.registry import Registry

LABEL_SETS: Registry[tuple[str, ...]] = Registry(
    "label set",
    "cmt_triton.label_sets",
    tuple,
    {  # in the order of the official releases
        "meld": ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger"),
        "iemocap4": ("anger", "happiness", "neutral", "sadness"),
        "iemocap6": ("happiness", "sadness", "neutral", "anger", "excitement", "frustration"),
        "affectnet8": ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt"),
    },
)

DEFAULT_LABEL_SET = "meld"
SEPARATOR = ","
LABEL = re.compile(r"\w[\w' -]{0,63}")


def labels_of(label_set: str) -> tuple[str, ...]:
    """The labels of a set, in output order. ValueError for an unknown set, and for names that no labels can have."""
    if SEPARATOR in label_set:
        return checked_labels([label.strip() for label in label_set.split(SEPARATOR)])
    return checked_labels(LABEL_SETS[label_set])


def checked_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """ValueError unless they are two or more different names of letters, digits, spaces, `_`, `-` and `'`."""
    wrong = [label for label in labels if not isinstance(label, str) or not LABEL.fullmatch(label)]
    if wrong or len(set(labels)) != len(labels) or len(labels) < 2:
        raise ValueError(
            f"labels: got {ascii(list(labels))[:200]}; expected two or more different names of letters, digits, "
            "spaces, _, - and '"
        )
    return tuple(labels)
