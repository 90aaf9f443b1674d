"""Results in the repository: what the docs say of them is what they say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cmt_perf.real.page import alone
from cmt_perf.real.page import paired as paired_table
from cmt_training.compare.results import Results as Ladders

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "training.md").read_text()
RESULTS = ROOT / "training" / "results"
GENERATED, MELD, REAL = (RESULTS / name for name in ("generated.json", "meld_text.json", "real.json"))


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
    ladders = Ladders.from_json(GENERATED.read_text())
    assert json.loads(ladders.to_json()) == json.loads(GENERATED.read_text())
    assert ladders.markdown() in PAGE
    assert ladders.kinds_markdown("interplay") in PAGE
    told = " ".join(PAGE.split())
    for ladder in ladders.corpora.values():
        for margin in (*ladder.margins, *ladder.over_late):
            assert margin.told() in told
            assert margin.met == (margin.percent / margin.claimed_percent >= 1)
