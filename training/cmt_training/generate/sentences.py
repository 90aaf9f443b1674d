"""Sentences out of a grammar: templates with slots. Templates and most words of a slot belong to one split alone."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from cmt_training.examples import Split
from cmt_training.generate.options import NEUTRAL
from cmt_training.generate.phrases import BEARING, HINTS, PLAIN, WORDS

CLEAR = 0.5  # strength from which a sentence names its emotion
HINTING = 0.22  # strength from which it leaves two to four emotions open; below, it says nothing
#: Of the templates, and of the words of every slot.
TEST_SHARE = 0.27
VALIDATION_SHARE = 0.2

_SLOT = re.compile(r"\{(\w+)\}")


def sentence(emotion: str, strength: float, split: Split, rng: np.random.Generator) -> str:
    """What somebody says. strength: 0 to 1; a strong one names the emotion, a weak one doesn't."""
    hints = [text for emotions, texts in HINTS if emotion in emotions for text in _part(texts, split)]
    if emotion == NEUTRAL or strength < HINTING:
        templates = _part(PLAIN, split)
    elif strength < CLEAR:
        templates = hints
    else:
        templates = _part(BEARING[emotion], split)
    return _SLOT.sub(lambda match: _word(match[1], split, rng), templates[int(rng.integers(len(templates)))])


def _word(slot: str, split: Split, rng: np.random.Generator) -> str:
    words = _part(WORDS[slot.lower()], split)
    word = words[int(rng.integers(len(words)))]
    return word[0].upper() + word[1:] if slot[0].isupper() else word


def _part(items: Sequence[str], split: Split) -> Sequence[str]:
    """A split's own of a list: its end is the test split's, what stands before that the validation split's."""
    test = len(items) - max(1, round(TEST_SHARE * len(items)))
    validation = test - max(1, round(VALIDATION_SHARE * len(items)))
    return {"train": items[:validation], "validation": items[validation:test], "test": items[test:]}[split]


def misheard(text: str, noise: float, rng: np.random.Generator) -> str:
    """The sentence as a bad transcription has it: words lost and letters wrong. noise: 0 to 1."""
    words = []
    for word in text.split():
        place = rng.random()
        if place < 0.35 * noise:
            continue
        words.append(_mistyped(word, rng) if place < 1.1 * noise else word)
    return " ".join(words) or "..."


def _mistyped(word: str, rng: np.random.Generator) -> str:
    letters = list(word)
    for _ in range(1 + len(letters) // 4):
        place = int(rng.integers(len(letters)))
        kind = int(rng.integers(3))
        if kind == 0 and len(letters) > 2:
            del letters[place]
        elif kind == 1 and place + 1 < len(letters):
            letters[place], letters[place + 1] = letters[place + 1], letters[place]
        else:
            letters[place] = chr(ord("a") + int(rng.integers(26)))
    return "".join(letters)
