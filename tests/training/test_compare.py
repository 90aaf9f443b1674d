"""The ladder of fusions: its tokens, what it trains, what it measures, and what its report says."""

from __future__ import annotations

import html
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cmt_export.checkpoint import Checkpoint
from cmt_pipeline.modality import MODALITIES
from cmt_pipeline.tensors import MODEL_WIDTH
from cmt_training.batches import Reader, raw_sources
from cmt_training.binding.ladder import MATCHED, MODELS, RUNGS, parameters_of
from cmt_training.compare.data_set import compared
from cmt_training.compare.figure import figure_of
from cmt_training.compare.intervals import Drawn, difference
from cmt_training.compare.ladders import measured, models_for
from cmt_training.compare.learn import ONLY, Budget, Net, said
from cmt_training.compare.results import OURS, Results, ladder_of
from cmt_training.compare.run import Place, answered, trained
from cmt_training.compare.tokens import GRID, PLAIN, Tokens, pooled, standardised, tokens_of
from cmt_training.examples import DataError
from cmt_training.metrics import Floats, softmax, weighted_f1
from cmt_training.prepare import Prepared
from cmt_training.report import write_comparison
from small_training import silent

ROOT = Path(__file__).parents[2]
TINY = Budget(steps=2, batch_size=64, learning_rates=(3e-3,))


def made_up(count: int, *, xor: bool, seed: int = 0) -> Tokens:
    """Items whose sound and text each show one of two things; the label is whether these are the same (xor), or what
    both show. Some lack a modality."""
    rng = np.random.default_rng(seed)
    audio = rng.integers(0, 2, count)
    text = rng.integers(0, 2, count) if xor else audio
    directions = rng.normal(size=(3, 2, MODEL_WIDTH))
    shown = (np.zeros(count, np.int64), audio, text)
    features = tuple(
        (d[s][:, None] + 0.3 * rng.normal(size=(count, 2, MODEL_WIDTH))).astype(np.float16)
        for d, s in zip(directions, shown, strict=True)
    )
    counts = rng.integers(1, 3, (count, 3))
    counts[::10, 0] = 0
    splits = np.repeat(["train", "validation", "test"], [count - count // 2, count // 4, count // 2 - count // 4])
    kinds = np.where(np.arange(count) % 2, "irony", PLAIN)
    people = np.array([f"person-{number % 7}" for number in range(count)])
    return Tokens(("calm", "glad"), features, counts, (audio ^ text) if xor else audio, splits, people, kinds)


def test_tokens_are_means_of_neighbours() -> None:
    image = torch.arange(1 + 8 * 8, dtype=torch.float32)[:, None].expand(-1, 3)
    audio, text = torch.ones(33, 3), torch.rand(5, 3)
    audio[32] = 7
    few = pooled([image, audio, text])
    assert [len(each) for each in few] == [1 + GRID**2, 3, 5]
    assert torch.equal(few[0][0], image[0])
    assert few[0][1, 0] == (1 + 2 + 9 + 10) / 4, "the mean of a corner's four patches"
    assert few[1][:, 0].tolist() == [1, 1, 7], "the last is of what is left of the sound"
    assert torch.equal(few[2], text)
    assert [len(each) for each in pooled([image[:0], audio[:0], text])] == [0, 0, 5]
    for count, beside in ((49, 0), (196, 0), (197, 1), (257, 1), (261, 5)):  # Swin, SigLIP, ViT, DINOv2, with registers
        assert len(pooled([torch.rand(count, 3), audio, text])[0]) == beside + GRID**2


def test_tokens_are_standardised_by_those_of_training() -> None:
    rng = np.random.default_rng(0)
    where = 10 * rng.normal(size=(1, 3, 4))  # what a place alone says
    tokens = (where + rng.normal(size=(400, 3, 4))).astype(np.float16)
    own = np.arange(3) < rng.integers(0, 4, 400)[:, None]
    training = np.arange(400) < 300
    found = standardised(tokens, own, training, by_place=True)
    assert not found[~own].any()
    for place in range(3):
        known = found[training & own[:, place], place].astype(np.float32)
        assert np.abs(known.mean(axis=0)).max() < 0.01
        assert np.abs(known.std(axis=0) - 1).max() < 0.05
    together = standardised(tokens, own, training, by_place=False)[training][own[training]].astype(np.float32)
    assert np.abs(together.std(axis=0) - 1).max() < 0.05
    changed = tokens.copy()
    changed[300:] += 5
    assert np.array_equal(standardised(changed, own, training, by_place=True)[:300], found[:300])


def test_a_data_set_becomes_tokens_once(prepared: Prepared, untrained: Checkpoint, tmp_path: Path) -> None:
    folder = tmp_path / "tokens"
    once = tokens_of(folder, prepared, untrained.model, silent)
    for column, m in enumerate(MODALITIES):
        features, counts = once.features[column], once.counts[:, column]
        assert features.shape == (len(prepared.items), counts.max(), MODEL_WIDTH)
        assert (counts > 0).tolist() == [item.has(m) for item in prepared.items]
        assert all(features[row, :own].any() or not own for row, own in enumerate(counts))
        assert not any(features[row, own:].any() for row, own in enumerate(counts))
    assert [once.names[label] for label in once.labels] == [item.label for item in prepared.items]
    assert once.splits.tolist() == [item.split for item in prepared.items]
    assert set(once.people.tolist()) == {item.speaker or item.id for item in prepared.items}
    row = next(row for row, item in enumerate(prepared.items) if all(map(item.has, MODALITIES)))
    reader = Reader(prepared, raw_sources(prepared))
    alone = untrained.model.eval().encode(reader.batch([row]).inputs)
    few = pooled([tokens[0, : int(mask.sum())] for tokens, mask in zip(alone[::2], alone[1::2], strict=True)])
    assert once.counts[row].tolist() == list(map(len, few))
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    again = tokens_of(folder, prepared, untrained.model, silent)
    assert all(np.array_equal(a, b) for a, b in zip(once.features, again.features, strict=True))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == made


@pytest.mark.long
def test_rungs_have_the_same_parameters_and_read_what_they_say() -> None:
    nets = {model: Net(model, 7) for model in MODELS}
    counts = {model: parameters_of(net.rung) for model, net in nets.items()}
    assert all(abs(count - counts[OURS]) <= MATCHED * counts[OURS] for count in counts.values()), counts
    tokens = made_up(24, xor=True)
    for m in MODALITIES:
        rows = np.flatnonzero(tokens.counts.min(axis=1) > 0)
        alone, without = (said(nets[m], tokens, rows, tuple(only)) for only in (1 - ONLY[m], ONLY[m]))
        assert torch.allclose(alone, said(nets[m], tokens, rows), atol=1e-5)
        assert torch.allclose(without, without[:1].expand_as(without), atol=1e-5), "the same answer to everything"


def accuracy(model: str, tokens: Tokens, folder: Path) -> dict[str, float]:
    budget = replace(TINY, steps=50, learning_rates=(1e-3, 3e-3), modality_dropout=0.0)
    (training,) = trained(model, tokens, Place(folder, budget), seeds=(0,))
    labels = tokens.labels[tokens.of("test")]
    return {
        rung: float((answer.probabilities[""].argmax(axis=1) == labels).mean())
        for rung, answer in answered(training, tokens).items()
    }


@pytest.mark.slow
def test_tokens_that_attend_see_what_a_sum_of_evidence_cant(tmp_path: Path) -> None:
    tokens = made_up(1600, xor=True)
    late = accuracy("late", tokens, tmp_path)
    assert accuracy(OURS, tokens, tmp_path)[OURS] > 0.9
    assert max(late.values()) < 0.65
    assert set(late) == {"log-linear", "stacked"}


@pytest.mark.long
def test_a_ladder_is_measured_whole_and_trained_once(tmp_path: Path) -> None:
    tokens, place, seeds = made_up(160, xor=False), Place(tmp_path, TINY), (0, 1)
    ladder = ladder_of(tokens, {model: trained(model, tokens, place, seeds) for model in MODELS}, place)
    assert tuple(ladder.rungs) == RUNGS
    assert ladder.items == {"train": 80, "validation": 40, "test": 40}
    assert ladder.kinds == {"irony": 20, PLAIN: 20}
    for name, rung in ladder.rungs.items():
        assert len(rung.weighted_f1.values) == len(seeds)
        assert set(rung.kinds) == set(ladder.kinds)
        assert set(rung.without) == (set() if name in MODALITIES else set(MODALITIES))
        assert np.mean(list(rung.kinds.values())) == pytest.approx(rung.accuracy.mean)
    for margin in ladder.margins:
        others = [getattr(rung, margin.measure).mean for name, rung in ladder.rungs.items() if name != OURS]
        best = max(others) if margin.measure == "weighted_f1" else min(others)
        assert getattr(ladder.rungs[margin.other], margin.measure).mean == best
    assert {margin.other for margin in ladder.over_late} == {"log-linear"}
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    again = ladder_of(tokens, {model: trained(model, tokens, place, seeds) for model in MODELS}, place)
    assert again == ladder
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == made
    results = Results({"interplay": ladder, "control": ladder}, {})
    assert Results.from_json(results.to_json()) == results
    assert figure_of(results).startswith(b"\x89PNG")
    write_comparison(results, tmp_path / "report")
    page = (tmp_path / "report" / "report.html").read_text()
    assert all(f">{rung}<" in page for rung in RUNGS)
    assert all(margin.told() in html.unescape(page) for margin in ladder.margins)


def test_differences_are_paired() -> None:
    rng = np.random.default_rng(0)
    labels, people = rng.integers(0, 3, 600), np.repeat([f"person-{n}" for n in range(12)], 50)
    noise = [rng.normal(size=(600, 3)) for _ in range(3)]
    shift = 0.6 * rng.normal(size=600)[:, None] * np.eye(3)[labels]  # what is hard is hard for both

    def of(skill: float) -> list[Floats]:
        return [softmax(each + shift + skill * np.eye(3)[labels]) for each in noise]

    drawn = Drawn(people, labels, seeds=3)
    better, worse = drawn.weighted_f1(of(1.2)), drawn.weighted_f1(of(0.8))
    measured = [weighted_f1(a, labels) - weighted_f1(b, labels) for a, b in zip(of(1.2), of(0.8), strict=True)]
    found = difference(better, worse, measured)
    assert 0 < found.low < found.mean < found.high
    assert found.mean == pytest.approx(np.mean(measured))
    assert better.mean() - worse.mean() == pytest.approx(found.mean, abs=0.01)
    assert found.high - found.low < np.ptp(np.percentile(better, [2.5, 97.5])), "pairing takes out what both share"
    same = difference(better, better, [0.0] * 3)
    assert (same.low, same.high) == (0.0, 0.0)
    assert (drawn.cross_entropy(of(1.2)) < drawn.cross_entropy(of(0.8))).all()


def test_a_modality_that_is_in_no_item_has_no_rung() -> None:
    whole = made_up(24, xor=False)
    counts = whole.counts * np.array([1, 0, 1])
    assert models_for(replace(whole, counts=counts)) == tuple(model for model in MODELS if model != "audio")


def test_a_comparison_needs_two_seeds_two_modalities_and_encoders(
    prepared: Prepared, untrained: Checkpoint, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"seeds: got \[3\]; expected two or more"):
        measured({}, {}, (3,), 1, silent)
    alone = tuple(replace(item, audio=None, image=None) for item in prepared.items if item.text is not None)
    with pytest.raises(DataError, match="got items with text alone; expected two modalities or more"):
        compared(replace(prepared, items=alone), untrained, (0, 1), TINY, tmp_path, 1, silent)
    classifiers = replace(untrained, config=replace(untrained.config, model="composed"))
    with pytest.raises(ValueError, match="got a composed checkpoint, which has classifiers"):
        compared(prepared, classifiers, (0, 1), TINY, tmp_path, 1, silent)
