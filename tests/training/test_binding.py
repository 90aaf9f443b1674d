"""The binding family is what it says, exactly, and the ladder tells fusions apart on it."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from cmt_pipeline.modality import MODALITIES
from cmt_training.binding.__main__ import _trained
from cmt_training.binding.family import AUDIO, IMAGE, KINDS, NOISE, TEXT, WIDTH, Kind, ceiling, drawn, items
from cmt_training.binding.figure import figure_of
from cmt_training.binding.fit import AGAIN, Budget, Task, turns
from cmt_training.binding.ladder import MATCHED, MODELS, RUNGS, made, parameters_of
from cmt_training.binding.results import Results
from cmt_training.binding.run import LATE, Reached, Trained, run

LENGTH = 4
ROOT = Path(__file__).parents[2]
Marks = tuple[tuple[int, ...], ...]


def everything(kind: Kind) -> list[tuple[Marks, int]]:
    """Every item of four tokens that may come, all equally often, and its label."""
    found = []
    ones = [
        tuple(int(i in chosen) for i in range(LENGTH)) for n in (1, 2) for chosen in itertools.combinations(range(4), n)
    ]
    for words, voice, face in itertools.product(itertools.product([1, -1], repeat=LENGTH), ones, ones):
        stressed = [w for w, v in zip(words, voice, strict=True) if v]
        shown = [w for w, f in zip(words, face, strict=True) if f]
        if sum(words) != 0:
            continue
        if kind == "binding" and (sum(voice), sum(face)) == (1, 1):
            found.append(((face, voice, words), int(stressed[0] > 0)))
        met = [w for w, v, f in zip(words, voice, face, strict=True) if v and f]
        if (
            kind == "coincidence"
            and sum(voice) == sum(face) == 2
            and len(met) == 1
            and sum(stressed) == sum(shown) == 0
        ):
            found.append(((face, voice, words), int(met[0] > 0)))
    return found


def label_shares(pairs: Iterable[tuple[object, int]]) -> set[float]:
    """How often the label is 1 beside each thing that is seen."""
    total: Counter[object] = Counter()
    positive: Counter[object] = Counter()
    for seen, label in pairs:
        total[seen] += 1
        positive[seen] += label
    return {positive[seen] / count for seen, count in total.items()}


@pytest.mark.parametrize("kind", ["binding", "coincidence"])
def test_items_are_drawn_evenly_from_all_that_there_are(kind: Kind) -> None:
    whole, sample = dict(everything(kind)), drawn(kind, LENGTH, 20_000, seed=0)
    rows = [tuple(map(tuple, marks)) for marks in sample.marks.tolist()]
    assert set(rows) == set(whole)
    assert all(whole[marks] == label for marks, label in zip(rows, sample.labels.tolist(), strict=True))
    expected = len(rows) / len(whole)
    chi_square = sum((count - expected) ** 2 / expected for count in Counter(rows).values())
    assert chi_square < len(whole) + 5 * (2 * len(whole)) ** 0.5


@pytest.mark.parametrize("kind", ["binding", "coincidence"])
def test_each_modality_alone_says_nothing(kind: Kind) -> None:
    """Exactly: beside everything that a modality may show, both labels are as likely."""
    whole = everything(kind)
    for m in range(len(MODALITIES)):
        assert label_shares((marks[m], label) for marks, label in whole) == {0.5}
    assert label_shares(whole) == {0.0, 1.0}


def test_what_two_modalities_say() -> None:
    told = {"binding": (AUDIO, TEXT), "coincidence": ()}
    for kind, enough in told.items():
        whole = everything(kind)  # type: ignore[arg-type]
        for pair in itertools.combinations((IMAGE, AUDIO, TEXT), 2):
            shares = label_shares((tuple(marks[m] for m in pair), label) for marks, label in whole)
            assert shares == ({0.0, 1.0} if pair == enough else {0.5})


def accuracy_of(kind: Kind, read: Sequence[int], count: int = 40_000) -> float:
    """Of the sign of the sum (`xor`: the product) of what those modalities show."""
    sample = drawn(kind, 8, count, seed=1)
    cues = sample.marks.sum(dim=2)[:, list(read)].double()
    score = cues.prod(dim=1) if kind == "xor" else cues.sum(dim=1)
    return float(((score > 0) == (sample.labels == 1)).double().mean())


def test_controls_say_what_they_are_meant_to() -> None:
    each = {kind: [accuracy_of(kind, [m]) for m in range(3)] for kind in KINDS[2:]}
    assert each["redundant"] == pytest.approx([0.85] * 3, abs=0.01)
    assert len(set(each["redundant"])) == 1, "all make the same errors"
    assert each["unique"] == pytest.approx([0.5, 0.85, 0.5], abs=0.01)
    assert each["additive"] == pytest.approx([0.75] * 3, abs=0.01)
    assert each["xor"] == pytest.approx([0.5] * 3, abs=0.01)
    assert accuracy_of("additive", range(3)) == pytest.approx(ceiling("additive"), abs=0.01)
    assert accuracy_of("xor", [AUDIO, TEXT]) == ceiling("xor") == 1.0


def noise(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_tokens_are_the_contracts_and_the_seeds() -> None:
    made_once, again = (items(drawn("binding", 6, 5, seed=3), noise(3)) for _ in range(2))
    for features, same, mask in zip(made_once.features, again.features, made_once.masks, strict=True):
        assert (features.shape, features.dtype) == ((5, 6, WIDTH), torch.float32)
        assert (mask.shape, mask.dtype, bool(mask.all())) == ((5, 6), torch.int64, True)
        assert torch.equal(features, same)
    other = items(drawn("binding", 6, 5, seed=3), noise(4))
    deviation = (made_once.features[0] - other.features[0]).std() / 2**0.5
    assert float(deviation) == pytest.approx(NOISE, rel=0.2)
    for length in (2, 5):
        with pytest.raises(ValueError, match="expected an even number, 4 or more"):
            drawn("binding", length, 1, seed=0)


def test_lengths_grow_and_shorter_ones_come_again() -> None:
    found = list(turns((4, 8, 16), 5 * AGAIN))
    assert found[: 5 * AGAIN] == [4] * 5 * AGAIN
    assert found[5 * AGAIN : 10 * AGAIN : AGAIN] == [4] * 5
    assert found[10 * AGAIN :: AGAIN] == [4, 8, 4, 8, 4]
    assert Counter(found[10 * AGAIN :])[16] == 5 * (AGAIN - 1)


def test_rungs_have_the_same_parameters() -> None:
    counts = {model: parameters_of(made(model)) for model in MODELS}
    wanted = counts["cross-attention"]
    assert all(abs(count - wanted) <= MATCHED * wanted for count in counts.values()), counts


def accuracies(kind: Kind, length: int, model: str, steps: int, learning_rate: float) -> dict[str, float]:
    budget = Budget(steps, learning_rates=(learning_rate,), validation=512, test=512)
    (tested,) = run(Task(kind, (length,)), model, budget, seeds=(0,)).reached
    return {rung: values[0] for rung, values in tested.accuracies.items()}


@pytest.fixture
def small_emap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cmt_training.binding.run.EMAP_ITEMS", 64)
    monkeypatch.setattr("cmt_training.binding.run.EMAP_OTHERS", 8)


@pytest.mark.slow
@pytest.mark.usefixtures("small_emap")
def test_tokens_that_attend_to_each_other_bind_what_pooled_ones_dont() -> None:
    budget = Budget(steps=300, learning_rates=(5e-3,), validation=512, test=512)
    shorter, found = run(Task("binding", (4, 6)), "cross-attention", budget, seeds=(0,)).reached
    (reached,) = found.accuracies["cross-attention"]
    assert (shorter.length, found.length) == (4, 6)
    assert reached > 0.9
    assert found.emap[0] < 0.65 < 0.9 < found.own[0], "all of it is interaction"
    assert accuracies("binding", 6, "concat", 300, 3e-3)["concat"] < reached - 0.1


@pytest.mark.long
@pytest.mark.usefixtures("small_emap")
def test_late_fusion_ties_where_evidence_adds_up() -> None:
    late = accuracies("additive", 4, "late", 80, 1e-2)
    tokens = accuracies("additive", 4, "cross-attention", 80, 3e-3)["cross-attention"]
    assert late["log-linear"] == pytest.approx(tokens, abs=0.03)
    assert tokens == pytest.approx(ceiling("additive"), abs=0.05)


@pytest.mark.long
def test_the_committed_results_are_what_the_page_shows() -> None:
    results = Results.from_json((ROOT / "training/results/binding.json").read_text())
    assert json.loads(results.to_json()) == json.loads((ROOT / "training/results/binding.json").read_text())
    assert results.markdown() in (ROOT / "docs/training.md").read_text()
    assert results.parameters == {model: parameters_of(made(model)) for model in MODELS}
    for cell in results.cells:
        assert tuple(cell.accuracies) == RUNGS
        best = max(found.mean for rung, found in cell.accuracies.items() if rung in MODELS)
        assert cell.accuracies[cell.winner].mean == best
    assert figure_of(results).startswith(b"\x89PNG")


def test_the_page_says_what_the_committed_results_say() -> None:
    results = Results.from_json((ROOT / "training/results/binding.json").read_text())
    told = " ".join((ROOT / "docs/training.md").read_text().split())
    found = {(cell.kind, cell.length): cell.accuracies for cell in results.cells}
    assert {length for kind, length in found if kind == "binding"} == {4, 8, 16, 32}
    assert {kind for kind, _ in found} == set(KINDS)
    for (kind, _), reached in found.items():
        if kind == "binding":
            assert min(reached["cross-attention"].values) > 0.995
        if kind in ("binding", "coincidence"):
            assert all(abs(reached[rung].mean - 0.5) < 0.02 for rung in (*MODALITIES, *LATE))
        if kind in ("redundant", "unique", "additive"):
            assert all(abs(reached[rung].mean - ceiling(kind)) < 0.02 for rung in ("log-linear", "cross-attention"))
    for rung in ("concat", "gated", "bottleneck"):
        of = found["binding", 32][rung]
        assert f"{of.mean:.2f} [{of.low:.2f}, {of.high:.2f}]" in told
    assert max(each.mean for each in found["coincidence", 8].values()) == pytest.approx(0.75, abs=0.005)
    assert sum(value < 0.55 for value in found["coincidence", 4]["cross-attention"].values) == 1
    assert sum(value > 0.6 for value in found["binding", 4]["self-attention"].values) == 1
    assert all(cell.emap.mean < 0.55 for cell in results.cells if cell.kind in ("binding", "coincidence"))
    xor = found["xor", 4]
    assert all((xor[rung].mean > 0.99) == (rung not in (*MODALITIES, *LATE)) for rung in RUNGS)


def test_what_is_trained_isnt_trained_again(tmp_path: Path) -> None:
    """And a work file may end before all is done: only whole cells are shown."""
    budget, seeds, tasks = Budget(), (0, 1), [Task("binding", (4, 8)), Task("xor", (4,))]
    two = (0.5, 0.6)
    made_up = [
        Trained(
            task,
            model,
            1e-3,
            tuple(
                Reached(length, dict.fromkeys(LATE if model == "late" else [model], two), two, two)
                for length in task.lengths
            ),
            "nowhere",
        )
        for task in tasks
        for model in MODELS
    ]
    recipe = json.dumps([asdict(budget), list(seeds)])
    lines = [json.dumps({"recipe": recipe, "trained": asdict(each)}) + "\n" for each in made_up[:-1]]
    (tmp_path / "trained.jsonl").write_text("".join(lines) + lines[0].replace("1500", "1501"))
    found = _trained([(tasks[0], model) for model in MODELS], budget, seeds, 1, tmp_path / "trained.jsonl")
    assert found == made_up[:-1]
    assert [(cell.kind, cell.length) for cell in Results.of(found, {}).cells] == [("binding", 4), ("binding", 8)]
