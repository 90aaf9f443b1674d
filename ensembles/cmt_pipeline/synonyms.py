"""What emotions are called elsewhere: the names of published classifiers and data sets -> one name each.

Only names that mean the same. What means less or more (contempt, boredom, love, optimism, calm) has no entry: it has a
place in a label set that has that very name, and else none. A caller's own table goes before this one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

#: name -> what else it is called, in lower case.
SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "anger": ("angry", "ang", "mad"),
    "disgust": ("disgusted", "dis", "disguist"),  # the last is a published model's spelling
    "fear": ("fearful", "fea", "scared"),
    "joy": ("joyful", "happy", "happiness", "hap"),
    "neutral": ("neu",),
    "sadness": ("sad",),
    "surprise": ("surprised", "sur"),
    "contempt": ("contemptuous",),
    "excitement": ("excited", "exc"),
    "frustration": ("frustrated", "fru"),
    "boredom": ("bored",),
    "calm": ("calmness",),
}

_NAMES = {other: name for name, others in SYNONYMS.items() for other in (name, *others)}
_PREFIX = re.compile(r"^(?:\d+|hf|label|emotion)[_\s-]+(?=[a-z])")
_NUMBERED = re.compile(r"label[_ -]?\d+")


def canonical(name: str) -> str:
    """The one name of an emotion, whatever its case and prefix (`1_Angry`, `hf_anger` -> `anger`); an unknown one is
    itself, in lower case."""
    plain = _PREFIX.sub("", name.strip().lower())
    return _NAMES.get(plain, plain)


def is_numbered(name: str) -> bool:
    """Whether it is no name but a number (`LABEL_3`, `3`), which says nothing about what is meant."""
    return bool(_NUMBERED.fullmatch(name.strip().lower())) or name.strip().isdigit()


def places(names: Iterable[str], labels: Iterable[str], own: Mapping[str, str] | None = None) -> dict[str, str | None]:
    """Which of the labels each name means; None for one that has no place among them.

    own: a caller's table, name -> label, or "" for no place; it goes first, and case doesn't count. ValueError for a
    label in it that isn't among them.
    """
    known = tuple(labels)
    by_name = {canonical(label): label for label in known}
    table = {name.strip().lower(): label for name, label in (own or {}).items()}
    if unknown := sorted({label for label in table.values() if label and label not in known}):
        raise ValueError(f"got the label {unknown[0]!r} for a name; expected one of {', '.join(known)}, or nothing")
    found: dict[str, str | None] = {}
    for name in names:
        plain = name.strip().lower()
        found[name] = (table[plain] or None) if plain in table else by_name.get(canonical(name))
    return found
