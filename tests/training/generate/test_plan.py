"""What examples show: shares, rates, and that one disturbance leaves everything else as it was."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import get_args

import pytest

from cmt_pipeline.labels import labels_of
from cmt_pipeline.modality import MODALITIES
from cmt_training.examples import DataError
from cmt_training.generate import options as of_corpus
from cmt_training.generate.options import AFFECT, LABEL_SET, NEUTRAL, SHARES, CorpusOptions, Variation
from cmt_training.generate.plan import CLEAR, Plan, plan_of, tags_of

OPTIONS = CorpusOptions(items=2000)


def plans(options: CorpusOptions) -> list[Plan]:
    return [plan_of(options, "test", number) for number in range(options.count("test"))]


def test_labels_come_in_their_shares() -> None:
    assert set(SHARES) == set(AFFECT) == set(labels_of(LABEL_SET))
    assert sum(SHARES.values()) == pytest.approx(1)
    found = plans(OPTIONS)
    counts = Counter(plan.label for plan in found)
    assert all(abs(counts[label] - share * len(found)) <= 1 for label, share in SHARES.items())


def test_disturbances_come_at_their_rates() -> None:
    found = plans(OPTIONS)
    emotional = [plan for plan in found if plan.label != NEUTRAL]
    assert sum(plan.contradicts is not None for plan in emotional) / len(emotional) == pytest.approx(
        OPTIONS.contradiction_rate, abs=0.05
    )
    for modality in MODALITIES:
        assert sum(plan.shown[modality].missing for plan in found) / len(found) == pytest.approx(
            OPTIONS.missing_rate, abs=0.03
        )
        assert sum(plan.shown[modality].noise > 0 for plan in found) / len(found) == pytest.approx(
            OPTIONS.noisy_rate * (1 - 0.11), abs=0.06
        )


def test_a_contradiction_is_outvoted_by_two_clear_modalities() -> None:
    for plan in plans(replace(OPTIONS, contradiction_rate=1.0)):
        if plan.contradicts is None:
            assert plan.label == NEUTRAL
            continue
        assert all(shown.strength >= CLEAR and not shown.noise and not shown.missing for shown in plan.shown.values())
        votes = Counter(shown.emotion for shown in plan.shown.values())
        assert votes.pop(plan.label) == 2
        (other,) = votes
        assert other != NEUTRAL
        assert tags_of(plan) == {"contradicts": plan.contradicts, "shows": other}


@pytest.mark.parametrize("variation", get_args(Variation))
def test_a_variation_changes_one_thing_and_more_of_it_with_its_level(variation: Variation) -> None:
    tag = {"noise": "noisy", "missing": "missing", "contradiction": "contradicts"}[variation]
    before: set[str] = set()
    calm = plans(of_corpus.test_variation(OPTIONS, variation, 0.0))
    assert not any(tags_of(plan) for plan in calm)
    for level in (0.25, 0.5, 1.0):
        disturbed = plans(of_corpus.test_variation(OPTIONS, variation, level))
        assert all(set(tags_of(plan)) <= {tag, "shows"} for plan in disturbed)
        assert [(p.id, p.person, p.label, p.valence) for p in disturbed] == [
            (p.id, p.person, p.label, p.valence) for p in calm
        ]
        touched = {plan.id for plan in disturbed if tags_of(plan)}
        assert before <= touched
        before = touched
    assert len(before) > 0.7 * len(calm)


def test_something_always_stays() -> None:
    found = plans(replace(OPTIONS, missing_rate=1.0, contradiction_rate=0.0))
    assert {sum(shown.missing for shown in plan.shown.values()) for plan in found} == {2}


@pytest.mark.parametrize(
    "wrong",
    [
        {"missing_rate": 1.5},
        {"noise_level": -0.1},
        {"items": 3},
        {"people": (1, 0, 1)},
        {"splits": ()},
        {"image_side_px": 5},
    ],
)
def test_impossible_options_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(DataError, match=r"expected|leave a split empty"):
        CorpusOptions(**wrong)  # type: ignore[arg-type]
