"""What people say in the generated corpus: sentences with slots, and the words of the slots (phrases.json).

The end of every list is the test split's, what stands before that the validation split's (see sentences.py).
"""

from __future__ import annotations

import json
from importlib.resources import files

_PHRASES = json.loads((files(__package__) / "phrases.json").read_text())

#: emotion -> sentences that bear it.
BEARING: dict[str, tuple[str, ...]] = {emotion: tuple(found) for emotion, found in _PHRASES["bearing"].items()}
#: Sentences that several emotions say: those emotions, and the sentences.
HINTS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = tuple(
    (tuple(hint["emotions"]), tuple(hint["sentences"])) for hint in _PHRASES["hints"]
)
#: Sentences that say nothing of an emotion.
PLAIN: tuple[str, ...] = tuple(_PHRASES["plain"])
#: slot -> words; no split's words are another's.
WORDS: dict[str, tuple[str, ...]] = {slot: tuple(words) for slot, words in _PHRASES["words"].items()}
