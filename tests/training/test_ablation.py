"""The ablation trains with and without a trick, measures both, and goes on where it was."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest

from cmt_training.ablation import EVERYTHING, FROM_NOTHING, TUNED, Row, Study, ablation, kept, table
from cmt_training.options import TrainOptions
from cmt_training.prepare import Prepared
from small_training import OPTIONS


@pytest.mark.long
def test_a_trick_is_left_out_and_measured(prepared: Prepared, tmp_path: Path) -> None:
    rows: list[Row] = []
    jobs = [(trick, seed) for seed in (0, 1) for trick in (EVERYTHING, "cue heads")]
    study = replace(FROM_NOTHING, options=replace(OPTIONS, epochs=1))
    ablation(prepared, study, tmp_path, jobs, 1, rows.append)
    assert [(row["without"], row["seed"]) for row in rows] == jobs
    assert rows[0]["cross_entropy"] != rows[1]["cross_entropy"]
    assert not list(tmp_path.iterdir()), "trainings that are measured leave nothing"


def test_differences_are_paired_by_seed() -> None:
    of_each = {"image_weighted_f1": 0.5, "audio_weighted_f1": 0.4, "text_weighted_f1": 0.6, "seconds": 1.0}

    def row(trick: str, seed: int, f1: float) -> Row:
        return {"without": trick, "seed": seed, "weighted_f1": f1, "cross_entropy": 2 * f1} | of_each

    rows = [row(EVERYTHING, 0, 0.5), row(EVERYTHING, 1, 0.7), row("cue heads", 0, 0.4), row("cue heads", 1, 0.6)]
    found = table(FROM_NOTHING, [*rows, row("cue heads", 2, 0.1)])
    assert "| nothing | 2 | 0.600 |  | 1.200 |  | 0.500 | 0.400 | 0.600 |" in found
    assert "| cue heads | 2 | 0.500 | -0.100 [-0.100, -0.100] | 1.000 |" in found, "a seed without a pair is left out"
    assert len(found.splitlines()) == 4


def test_rows_of_other_options_arent_gone_on_with(tmp_path: Path) -> None:
    result, told = tmp_path / "ablation.json", {"data": "corpus", "items": {"train": 2}, "options": {"epochs": 1}}
    assert kept(result, told) == []
    result.write_text(json.dumps({"rows": [{"seed": 0}], "conditions": told}))
    assert kept(result, told) == [{"seed": 0}]
    assert kept(result, told | {"options": {"epochs": 1, "since": None}}) == [{"seed": 0}]
    with pytest.raises(ValueError, match=r"has rows of options \{'epochs': 1\}; expected \{'epochs': 2\}"):
        kept(result, told | {"options": {"epochs": 2}})


@pytest.mark.parametrize("study", [FROM_NOTHING, TUNED], ids=["from nothing", "tuned"])
def test_every_trick_is_an_option_that_is_on(study: Study) -> None:
    names = {field.name for field in fields(TrainOptions)}
    for trick, changes in study.tricks.items():
        assert set(changes) <= names
        assert all(value != getattr(study.options, name) for name, value in changes.items()), trick
