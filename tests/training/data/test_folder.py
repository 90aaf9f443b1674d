"""Folders that hold no data set."""

from __future__ import annotations

from pathlib import Path

import pytest

from cmt_training.data import open_data_set
from cmt_training.examples import DataError


def test_an_absent_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere is no folder; expected that of a data set"):
        open_data_set(tmp_path / "nowhere")


def test_an_unknown_layout_says_what_is_known(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    for known in ("train_sent_emo.csv", "Session1", "train_set", "training.csv", "corpus.json", "03a01Fa.wav", "joy/1"):
        with pytest.raises(DataError, match=known):
            open_data_set(tmp_path)


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="got data set 'fer'; expected one of generated, meld, iemocap, affectnet, "):
        open_data_set(tmp_path, "fer")  # type: ignore[arg-type]
