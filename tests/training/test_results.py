"""Results in the repository: what the docs say of them is what they say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cmt_perf.real.page import alone
from cmt_perf.real.page import paired as paired_table
from cmt_training.compare import CLAIMED_PERCENT
from cmt_training.comparison import Comparison
from cmt_training.interplay.results import Results as Ladders
from cmt_training.options import MODELS
from cmt_training.report import comparison_markdown, verdict_of
from cmt_training.statistics import Interval, claim_of, paired

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "training.md").read_text()
RESULTS = ROOT / "training" / "results"
GENERATED, MELD, REAL = (RESULTS / name for name in ("generated.json", "meld_text.json", "real.json"))
INTERPLAY = RESULTS / "interplay.json"


def ends_of(interval: Interval) -> tuple[float, float, float]:
    return interval.low, interval.mean, interval.high


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return Comparison.from_json(GENERATED.read_text())


def test_the_docs_show_the_comparison_and_its_verdict(comparison: Comparison) -> None:
    assert comparison_markdown(comparison) in PAGE
    for claim in comparison.verdict.values():
        assert f"{claim.found_percent:+.1f} % against {claim.baseline}" in " ".join(PAGE.split())
    assert verdict_of(comparison)


def test_intervals_and_verdict_follow_from_the_runs(comparison: Comparison) -> None:
    assert tuple(comparison.models) == MODELS
    assert len(comparison.seeds) == 5
    ours = comparison.models["cmt"]
    for name, difference in comparison.differences.items():
        expected = paired(ours["weighted_f1"], comparison.models[name]["weighted_f1"])
        assert ends_of(difference.weighted_f1) == pytest.approx(ends_of(expected), abs=1e-5)
    for measure, claimed in CLAIMED_PERCENT.items():
        baselines = [(n, found[measure]) for n, found in comparison.models.items() if n != "cmt"]
        found = claim_of(measure, claimed, ours[measure], baselines)
        assert replace(comparison.verdict[measure], difference=found.difference) == found
        assert ends_of(comparison.verdict[measure].difference) == pytest.approx(ends_of(found.difference), abs=1e-5)


def test_the_report_lies_beside_it() -> None:
    page = (RESULTS / "generated" / "report.html").read_text()
    assert "Generated data: these figures say nothing about people" in page


def test_the_docs_show_the_figure_of_meld() -> None:
    found = json.loads(MELD.read_text())
    assert found["data"] == "meld"
    assert found["split"] == "test"
    assert f"weighted F1 {found['weighted_f1']:.3f}" in PAGE
    assert found["conditions"]["training"]["options"]["text_layers"] == 4
    assert "cmt train meld --model text --tune last-4" in PAGE


def test_the_docs_show_the_figures_on_real_media() -> None:
    found = json.loads(REAL.read_text())
    assert alone(found) in PAGE
    assert "paired" not in found or paired_table(found) in PAGE
    for part in found.values():
        assert all(command.startswith("cmt ") for command in part["commands"])


@pytest.mark.parametrize("path", [GENERATED, MELD], ids=lambda path: path.name)
def test_commands_are_those_of_any_machine(path: Path) -> None:
    assert "/" not in json.loads(path.read_text())["conditions"]["command"].split()[0]


def test_the_docs_show_the_ladder_on_interplay() -> None:
    """On generated talk, with interplay and without."""
    ladders = Ladders.from_json(INTERPLAY.read_text())
    assert json.loads(ladders.to_json()) == json.loads(INTERPLAY.read_text())
    assert ladders.markdown() in PAGE
    assert ladders.kinds_markdown("interplay") in PAGE
    told = " ".join(PAGE.split())
    for ladder in ladders.corpora.values():
        for margin in (*ladder.margins, *ladder.over_late):
            assert margin.told() in told
            assert margin.met == (margin.percent / margin.claimed_percent >= 1)
