"""Interplay comes at its rates; neither one modality nor a sum of evidence tells its label, and all together do."""

from __future__ import annotations

import io
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from cmt_pipeline.modality import MODALITIES
from cmt_training.data import open_data_set
from cmt_training.generate.corpus import generate_corpus
from cmt_training.generate.interplay import IRONIC, KIND_SHARES, KINDS, OPPOSITE
from cmt_training.generate.options import NEUTRAL, SHARES, CorpusOptions
from cmt_training.generate.plan import CLEAR, Plan, plan_of, tags_of
from cmt_training.generate.voices import Prosody, prosody_of, speech, stressed, voice_of

RATE = 0.5
OPTIONS = CorpusOptions(items=20_000, interplay_rate=RATE, contradiction_rate=0.0)


@pytest.fixture(scope="module")
def plans() -> list[Plan]:
    return [plan_of(OPTIONS, "test", number) for number in range(OPTIONS.count("test"))]


def said(plan: Plan) -> tuple[str, ...]:
    return plan.interplay.clauses if plan.interplay else (plan.shown["text"].emotion,)


#: What each modality says to who understands it perfectly.
UNDERSTOOD: dict[str, Callable[[Plan], Hashable]] = {
    "image": lambda plan: plan.shown["image"].emotion,
    "audio": lambda plan: (plan.shown["audio"].emotion, plan.interplay.stressed if plan.interplay else None),
    "text": said,
}


@pytest.mark.long
def test_it_comes_at_its_rates(plans: list[Plan]) -> None:
    emotional = [plan for plan in plans if plan.label != NEUTRAL]
    having = [plan for plan in emotional if plan.interplay]
    assert not any(plan.interplay for plan in plans if plan.label == NEUTRAL)
    for label in set(SHARES) - {NEUTRAL}:
        own = [plan for plan in emotional if plan.label == label]
        assert sum(plan.interplay is not None for plan in own) / len(own) == pytest.approx(RATE, abs=0.06)
    kinds = Counter(plan.interplay.kind for plan in having if plan.interplay and plan.label in OPPOSITE)
    for kind, share in KIND_SHARES.items():
        assert kinds[kind] / sum(kinds.values()) == pytest.approx(share, abs=0.05)
    assert {plan.interplay.kind for plan in having if plan.interplay and plan.label not in OPPOSITE} == {"stress"}
    early = [not plan.interplay.stressed for plan in having if plan.interplay and plan.interplay.kind != "irony"]
    assert sum(early) / len(early) == pytest.approx(0.5, abs=0.06)


def test_what_is_said_shown_and_meant(plans: list[Plan]) -> None:
    for plan in plans:
        if not (found := plan.interplay):
            continue
        assert tags_of(plan) == {"interplay": found.kind}
        assert all(shown.strength >= CLEAR and not shown.noise and not shown.missing for shown in plan.shown.values())
        ironic = [m for m in ("image", "audio") if plan.shown[m].emotion == IRONIC[m]]
        assert all(plan.shown[m].emotion == NEUTRAL for m in ("image", "audio") if m not in ironic)
        assert len(ironic) == (found.kind != "stress")
        meant = found.clauses[found.stressed or 0]
        assert plan.label == (OPPOSITE[meant] if ironic else meant)
        assert (found.stressed is None) == (found.kind == "irony") == (len(set(found.clauses)) == 1)


def test_no_modality_alone_can_tell(plans: list[Plan]) -> None:
    """Even of who understands it perfectly, and answers what is likeliest beside it: of two clauses' emotions the
    commoner, of four opposites the commonest."""
    bounds = {"irony": 0.2, "stress": 0.7, "aside": 0.4}
    for read in UNDERSTOOD.values():
        beside: dict[Hashable, Counter[str]] = defaultdict(Counter)
        for plan in plans:
            beside[read(plan)][plan.label] += 1
        for kind in KINDS:
            own = [plan for plan in plans if plan.interplay and plan.interplay.kind == kind]
            right = sum(beside[read(plan)].most_common(1)[0][0] == plan.label for plan in own) / len(own)
            assert right < bounds[kind], (kind, right)
    text = UNDERSTOOD["text"]
    literal = Counter((text(plan), plan.label) for plan in plans if len(said(plan)) == 1)
    for emotion, opposite in OPPOSITE.items():
        assert literal[(emotion,), emotion] > literal[(emotion,), opposite], "by its words alone irony is misread"


def test_only_all_three_together_can(plans: list[Plan]) -> None:
    """An exact sum of log-odds of perfectly understood modalities fails where a table of all three is always right."""
    labels = list(SHARES)
    prior = Counter(plan.label for plan in plans)
    tables: dict[str, Counter[tuple[Hashable, str]]] = {
        m: Counter((read(plan), plan.label) for plan in plans) for m, read in UNDERSTOOD.items()
    }
    together: dict[Hashable, set[str]] = defaultdict(set)
    right: Counter[str] = Counter()
    counts = Counter(plan.interplay.kind if plan.interplay else "plain" for plan in plans)
    for plan in plans:
        seen = {m: read(plan) for m, read in UNDERSTOOD.items()}
        together[tuple(seen.values())].add(plan.label)
        scores = [
            np.log(prior[label]) + sum(np.log((tables[m][seen[m], label] + 1e-3) / prior[label]) for m in MODALITIES)
            for label in labels
        ]
        right[plan.interplay.kind if plan.interplay else "plain"] += labels[int(np.argmax(scores))] == plan.label
    assert all(len(found) == 1 for found in together.values())
    assert right["plain"] == counts["plain"]
    assert right["irony"] == 0, "it is always taken at its word"
    assert right["stress"] / counts["stress"] < 0.7
    assert right["aside"] / counts["aside"] < 0.35


def test_more_of_it_leaves_everything_else_as_it_was() -> None:
    touched: set[str] = set()
    options = CorpusOptions(items=2000)
    control = [plan_of(options, "test", number) for number in range(400)]
    for rate in (0.0, 0.25, 0.5, 1.0):
        found = [plan_of(replace(options, interplay_rate=rate), "test", number) for number in range(400)]
        assert [(p.id, p.person, p.label, p.valence) for p in found] == [
            (p.id, p.person, p.label, p.valence) for p in control
        ]
        assert all(p == c for p, c in zip(found, control, strict=True) if not p.interplay)
        more = {plan.id for plan in found if plan.interplay}
        assert touched <= more
        touched = more
    assert touched == {plan.id for plan in control if plan.label != NEUTRAL}


def test_the_stressed_clause_is_louder_and_the_ironic_voice_slower() -> None:
    rng = np.random.default_rng(0)
    voice, calm = voice_of(rng), Prosody()

    def heard(said: Sequence[tuple[str, Prosody]]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return soundfile.read(io.BytesIO(speech(said, voice, 0.0, np.random.default_rng(1))))[0]

    words = "We met at the park."
    first, second = (
        heard([(words, stressed(calm, 1.0) if number == at else calm) for number in range(2)]) for at in (0, 1)
    )
    halves = [[np.std(part) for part in np.array_split(sound, 2)] for sound in (first, second)]
    assert halves[0][0] > 1.3 * halves[0][1]
    assert halves[1][1] > 1.3 * halves[1][0]
    assert len(heard([(words, prosody_of("irony", 1.0, rng))])) > 1.1 * len(heard([(words, calm)]))


@pytest.mark.long
def test_the_corpus_says_both_clauses(tmp_path: Path) -> None:
    """Deterministic, as every corpus is; its table tells what is played with."""
    options = CorpusOptions(items=30, seed=5, people=(2, 1, 1), image_side_px=32, interplay_rate=1.0)
    for name in ("one", "two"):
        generate_corpus(tmp_path / name, options, processes=1)
    files = [
        sorted(path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*.*")) for name in ("one", "two")
    ]
    assert files[0] == files[1]
    assert all((tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes() for path in files[0])
    for example in open_data_set(tmp_path / "one").of("train"):
        plan = plan_of(options, "train", int(example.id[-5:]))
        assert example.tags.get("interplay") == (plan.interplay.kind if plan.interplay else None)
        if plan.interplay:
            marks = [mark for mark in example.text or "" if mark in ".!?"]
            assert len(marks) >= len(plan.interplay.clauses)
