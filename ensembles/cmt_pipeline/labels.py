"""Label sets. A label travels as its name, together with the name of its set; never as a bare index."""

from __future__ import annotations

LABEL_SETS: dict[str, tuple[str, ...]] = {
    # Order of the official releases.
    "meld": ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger"),
    "iemocap4": ("anger", "happiness", "neutral", "sadness"),
    "iemocap6": ("happiness", "sadness", "neutral", "anger", "excitement", "frustration"),
    "affectnet8": ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt"),
}

DEFAULT_LABEL_SET = "meld"


def labels_of(label_set: str) -> tuple[str, ...]:
    """The labels of a set, in output order. ValueError for an unknown set."""
    try:
        return LABEL_SETS[label_set]
    except KeyError:
        raise ValueError(f"label set: got {label_set!r}; expected one of {', '.join(LABEL_SETS)}") from None
