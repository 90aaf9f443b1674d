"""The ablation trains with and without a trick, measures both, and goes on where it was."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest

from cmt_training.ablation import EVERYTHING, TRICKS, ablation
from cmt_training.options import TrainOptions
from cmt_training.prepare import Prepared
from small_training import OPTIONS


@pytest.mark.long
def test_a_trick_is_left_out_and_measured(prepared: Prepared, tmp_path: Path) -> None:
    options, tricks = replace(OPTIONS, epochs=1), (EVERYTHING, "cue heads")
    found = ablation(prepared, options, tmp_path, (0, 1), tricks, workers=1)
    assert list(found["without"]) == list(tricks)
    whole, without = (found["without"][trick]["cross_entropy"] for trick in tricks)
    assert whole["values"] != without["values"]
    assert "difference" in without
    assert "difference" not in whole
    kept = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert ablation(prepared, options, tmp_path, (0, 1), tricks, workers=1)["without"] == found["without"]
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == kept


def test_every_trick_is_an_option_that_is_on() -> None:
    names, usual = {field.name for field in fields(TrainOptions)}, TrainOptions()
    for trick, changes in TRICKS.items():
        assert set(changes) <= names
        assert all(value != getattr(usual, name) for name, value in changes.items()), trick
