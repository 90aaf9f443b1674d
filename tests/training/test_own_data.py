"""`cmt train`, `cmt evaluate` and `cmt compare` on a table of one's own, and on folders paired by label."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cmt_cli.main import app
from cmt_export.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from cmt_training.compare.results import Results
from cmt_training.examples import DataSet
from small_corpus import small_corpus, table_of

NAMES = {"neutral": "calm", "joy": "glad", "anger": "wild"}


@pytest.fixture
def own(tmp_path: Path) -> DataSet:
    """Media of a corpus, and a table of them with labels of one's own."""
    made = small_corpus(tmp_path / "media", (12, 6, 6))
    table_of(made, tmp_path / "moods.csv", NAMES)
    return made


def cmt(folder: Path, *arguments: str) -> str:
    ran = CliRunner().invoke(app, [*arguments, "--state", str(folder / "state")], env={"COLUMNS": "300"})
    assert ran.exit_code == 0, f"{ran.output}\n{ran.exception!r}"
    return ran.output


def train(folder: Path, preset: Path, *data: str) -> str:
    more = ("--preset", str(preset), "--epochs", "1", "--threads", "1", "--precision", "fp32")
    return cmt(folder, "train", *data, "--out", str(folder / "out"), *more)


@pytest.mark.long
def test_a_table_of_ones_own(own: DataSet, published_preset: Path, tmp_path: Path) -> None:
    table = str(tmp_path / "moods.csv")
    shown = train(tmp_path, published_preset, table, "--root", str(tmp_path / "media"))
    assert "cmt written to" in shown
    assert load_checkpoint(tmp_path / "out").config.labels == ("calm", "glad", "wild")
    cmt(tmp_path, "evaluate", str(tmp_path / "out"), table, "--root", str(tmp_path / "media"))
    found = json.loads((tmp_path / "out.evaluation" / "evaluation.json").read_text())
    assert (found["data"], found["labels"], found["calibrated"]["count"]) == ("moods.csv", ["calm", "glad", "wild"], 6)


@pytest.mark.long
def test_fusions_are_compared_on_a_table_of_ones_own(
    own: DataSet, untrained: Checkpoint, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each item's person is its own where the table names none; what was made and trained isn't anew."""
    save_checkpoint(untrained, tmp_path / "encoders")
    monkeypatch.setattr("cmt_training.compare.ladders.MODELS", ("image", "late", "cross-attention"))
    told = (str(tmp_path / "moods.csv"), "--root", str(tmp_path / "media"), "--checkpoint", str(tmp_path / "encoders"))
    more = ("--seeds", "2", "--steps", "1", "--workers", "1", "--out", str(tmp_path / "out"))
    shown = cmt(tmp_path, "compare", *told, *more)
    assert "Cross-attention over the best other rung, weighted F1: " in shown
    results = Results.from_json((tmp_path / "out" / "moods.csv.json").read_text())
    assert list(results.corpora["moods.csv"].rungs) == ["image", "log-linear", "stacked", "cross-attention"]
    assert results.conditions["items"] == {"train": 12, "validation": 6, "test": 6}
    assert ">cross-attention<" in (tmp_path / "out" / "moods.csv" / "report.html").read_text()
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "state" / "compare").rglob("*")}
    cmt(tmp_path, "compare", *told, *more)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "state" / "compare").rglob("*")} == made


@pytest.mark.long
def test_paired_data_are_called_so_everywhere(own: DataSet, published_preset: Path, tmp_path: Path) -> None:
    for m in ("image", "audio"):
        for e in own.examples:
            if (media := getattr(e, m)) is not None:
                target = tmp_path / m / e.split / e.label / media.path.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(media.path.read_bytes())
    pairs = ("--pair", f"image={tmp_path / 'image'}", "--pair", f"audio={tmp_path / 'audio'}")
    shown = train(tmp_path, published_preset, *pairs)
    said = "paired by label (seed 0), nobody recorded at once: image of image, audio of audio"
    assert said in shown
    history = json.loads((tmp_path / "out.run" / "history.json").read_text())
    assert history["notes"][0].startswith(said)
    assert history["recipe"]["data"].startswith("paired-image-audio-")
    cmt(tmp_path, "evaluate", str(tmp_path / "out"), *pairs)
    card = (tmp_path / "out.evaluation" / "MODEL_CARD.md").read_text()
    assert "trained on paired-image-audio" in card
    assert "Nobody was recorded in all of them" in card
    assert said[1:] in card
    assert said in (tmp_path / "out.evaluation" / "report.html").read_text()
