"""Names of emotions as published models and data sets have them."""

from __future__ import annotations

import pytest

from cmt_pipeline.labels import labels_of
from cmt_pipeline.synonyms import SYNONYMS, canonical, is_numbered, places


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("Angry", "anger"),
        ("ang", "anger"),
        ("1_angry", "anger"),
        ("hf_anger", "anger"),
        ("disguist", "disgust"),
        ("FEARFUL", "fear"),
        (" happy ", "joy"),
        ("Happiness", "joy"),
        ("neu", "neutral"),
        ("SAD", "sadness"),
        ("surprised", "surprise"),
        ("love", "love"),
    ],
)
def test_names_in_the_wild(name: str, meant: str) -> None:
    assert canonical(name) == meant


def test_no_name_means_two_things() -> None:
    others = [other for name, names in SYNONYMS.items() for other in (name, *names)]
    assert len(others) == len(set(others))


def test_a_number_is_no_name() -> None:
    assert [is_numbered(name) for name in ("LABEL_0", "label 12", "3", "joy", "label")] == [True] * 3 + [False] * 2


def test_places_in_a_label_set() -> None:
    affectnet = labels_of("affectnet8")  # says happiness where MELD says joy
    assert places(["happy", "contempt", "love"], affectnet) == {
        "happy": "happiness",
        "contempt": "contempt",
        "love": None,
    }
    assert places(["contempt", "hap"], labels_of("meld")) == {"contempt": None, "hap": "joy"}


def test_a_callers_table_goes_first() -> None:
    own = {"Calm": "neutral", "love": "joy", "surprise": ""}
    expected = {"calm": "neutral", "love": "joy", "surprise": None, "sad": "sadness"}
    assert places(["calm", "love", "surprise", "sad"], labels_of("meld"), own) == expected
    with pytest.raises(ValueError, match=r"got the label 'happy' for a name; expected one of neutral, surprise"):
        places(["love"], labels_of("meld"), {"love": "happy"})
