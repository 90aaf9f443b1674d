"""Results in the repository: what the docs say of them is what they say."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from statistics import fmean

import pytest

from cmt_perf.real.page import alone, ladder_on_paired, subsets
from cmt_training import ablation
from cmt_training.compare.results import Results as Ladders
from cmt_training.statistics import interval_of

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "training.md").read_text()
RESULTS = ROOT / "training" / "results"
ABLATION, TUNED, GENERATED, MELD, REAL = (
    RESULTS / name for name in ("ablation.json", "ablation_tuned.json", "generated.json", "meld_text.json", "real.json")
)


def test_the_docs_show_the_figure_of_meld() -> None:
    found = json.loads(MELD.read_text())
    assert found["data"] == "meld"
    assert found["split"] == "test"
    assert f"weighted F1 {found['weighted_f1']:.3f}" in PAGE
    assert found["conditions"]["training"]["options"]["text_layers"] == 4
    assert "cmt train meld --model text --tune last-4" in PAGE


def test_the_docs_show_the_figures_on_real_media() -> None:
    found = json.loads(REAL.read_text())
    assert set(found) == {"emodb", "meld", "fer2013", "paired"}
    for table in (alone(found), ladder_on_paired(found), subsets(found)):
        assert table in PAGE
    for part in found.values():
        low, high = part["weighted_f1_interval"]
        assert low < part["weighted_f1"] < high
        assert part["seeds"] == 3
        assert all(command.startswith("cmt ") for command in part["commands"])
        assert not [word for told in part["commands"] for word in told.split() if word.startswith("/")]
    paired, told = found["paired"], " ".join(PAGE.split())
    assert "0.881 [0.857, 0.906]" in told
    assert [paired["weighted_f1"], *paired["weighted_f1_interval"]] == pytest.approx([0.881, 0.857, 0.906], abs=5e-4)
    (ladder,) = Ladders.from_json(json.dumps(paired["ladder"])).corpora.values()
    assert max(ladder.rungs, key=lambda rung: ladder.rungs[rung].weighted_f1.mean) == "log-linear"
    for margin in ladder.over_late:
        assert margin.other == "log-linear"
        assert margin.told() in told


@pytest.mark.parametrize("study", [ablation.FROM_NOTHING, ablation.TUNED], ids=["from nothing", "tuned"])
def test_the_docs_show_what_each_trick_is_worth(study: ablation.Study) -> None:
    """Of every trick that is on by default, over the same seeds."""
    found = json.loads((ROOT / study.result).read_text())
    assert ablation.table(study, found["rows"]) in PAGE
    runs = {(row["without"], row["seed"]) for row in found["rows"]}
    assert runs == {(trick, seed) for trick in study.tricks for seed in range(3)}
    assert found["conditions"]["options"].items() <= asdict(study.options).items()


def test_tricks_of_training_from_nothing_are_worth_what_the_docs_say() -> None:
    runs = {(row["without"], row["seed"]): row for row in json.loads(ABLATION.read_text())["rows"]}

    def lost(trick: str, measure: str = "weighted_f1") -> list[float]:
        """By leaving it out, with each seed."""
        return [runs[ablation.EVERYTHING, seed][measure] - runs[trick, seed][measure] for seed in range(3)]

    for trick in ("encoders before the fusion", "cue heads", "Gabor filters and small branches at first"):
        assert min(lost(trick)) > 0.05
    assert min(lost("weights of rare labels")) > 0.02
    assert fmean(lost("wavelets and hearing before", "audio_weighted_f1")) == pytest.approx(0.09, abs=0.005)
    for trick in ("wavelets and hearing before", "a head on each modality", "lost modalities", "changed media"):
        found = interval_of(lost(trick))
        assert found.low < 0 < found.high
    assert max(lost("dropped patches and stretches of sound")) < 0


def test_tricks_of_tuning_are_worth_as_little_as_the_docs_say() -> None:
    runs = {(row["without"], row["seed"]): row for row in json.loads(TUNED.read_text())["rows"]}

    def gained(trick: str, measure: str) -> float:
        """By leaving it out, on average."""
        return fmean(runs[trick, seed][measure] - runs[ablation.EVERYTHING, seed][measure] for seed in range(3))

    f1 = {trick: gained(trick, "weighted_f1") for trick in ablation.TUNED.tricks}
    assert max(f1.values(), key=abs) == f1["warm-up"] == pytest.approx(0.004, abs=5e-4)
    assert gained("weights of rare labels", "cross_entropy") == pytest.approx(-0.05, abs=5e-3)


@pytest.mark.parametrize("path", [ABLATION, TUNED, GENERATED, MELD], ids=lambda path: path.name)
def test_commands_are_those_of_any_machine(path: Path) -> None:
    told = json.loads(path.read_text())["conditions"]["command"].split()
    assert "/" not in told[0]
    assert not [word for word in told if word.startswith("/")]


def test_the_docs_show_the_ladder_on_interplay() -> None:
    """On generated talk, with interplay and without."""
    ladders = Ladders.from_json(GENERATED.read_text())
    assert json.loads(ladders.to_json()) == json.loads(GENERATED.read_text())
    assert ladders.markdown() in PAGE
    assert ladders.kinds_markdown("interplay") in PAGE
    told = " ".join(PAGE.split())
    for ladder in ladders.corpora.values():
        for margin in (*ladder.margins, *ladder.over_late):
            assert margin.told() in told
            assert margin.met == (margin.percent / margin.claimed_percent >= 1)
