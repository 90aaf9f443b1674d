"""The grammar: no template and no word of a slot is in two splits; strong sentences differ from weak ones."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from cmt_training.examples import SPLITS, Split
from cmt_training.generate.options import NEUTRAL, SHARES
from cmt_training.generate.phrases import BEARING, HINTS, PLAIN, WORDS
from cmt_training.generate.sentences import CLEAR, HINTING, _part, misheard, sentence

LISTS = [*BEARING.values(), *(texts for _, texts in HINTS), PLAIN, *WORDS.values()]


def said(emotion: str, strength: float, split: Split) -> set[str]:
    return {sentence(emotion, strength, split, np.random.default_rng(seed)) for seed in range(300)}


@pytest.mark.parametrize("items", LISTS)
def test_splits_share_nothing(items: tuple[str, ...]) -> None:
    parts = [_part(items, split) for split in SPLITS]
    assert all(parts)
    assert tuple(itertools.chain(*parts)) == items
    assert len(set(items)) == len(items)


def test_no_sentence_is_in_two_lists() -> None:
    templates = [text for texts in LISTS[: -len(WORDS)] for text in texts]
    assert len(set(templates)) == len(templates)


@pytest.mark.parametrize("emotion", SHARES)
def test_no_sentence_of_the_test_split_is_trained_on(emotion: str) -> None:
    for strength in (0.1, (HINTING + CLEAR) / 2, 0.9):
        trained, tested = said(emotion, strength, "train"), said(emotion, strength, "test")
        assert not trained & tested
        assert not any(re.search(r"[{}]", text) for text in trained | tested)


def test_strength_decides_how_much_a_sentence_tells() -> None:
    for emotion in BEARING:
        assert said(emotion, 0.1, "train") == said(NEUTRAL, 0.9, "train")
    assert said("fear", 0.4, "train") & said("surprise", 0.4, "train")
    assert not said("fear", 0.9, "train") & said("surprise", 0.9, "train")


def test_mishearing_grows_with_noise() -> None:
    text = "I will never see my best friend again in this town."
    kept = []
    for noise in (0.1, 0.5, 0.9):
        heard = [misheard(text, noise, np.random.default_rng(seed)).split() for seed in range(200)]
        assert all(heard)
        kept.append(sum(len(set(words) & set(text.split())) for words in heard))
    assert kept[0] > 1.3 * kept[1] > 1.3 * kept[2]
