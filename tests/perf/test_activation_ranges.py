"""The report of fp16's range: what the page says of it was measured, and measuring works."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cmt_engine.activation_ranges import FP16_LARGEST, HEADROOM, MOST_ROUNDED, ActivationRange
from cmt_export.checkpoint import checkpoint_from_preset, save_checkpoint
from cmt_perf.activation_ranges import RESULTS, beyond_rows, layer_rows, main, table
from cmt_pipeline.stages import COMPILED_STAGES
from tiny_model import TINY

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "cmt" / "cmt_cli" / "samples"  # one file of each modality


def test_the_page_shows_what_was_measured() -> None:
    found = json.loads(RESULTS.read_text())
    assert found["fp16"] == {"largest": FP16_LARGEST, "headroom": HEADROOM, "most_rounded": MOST_ROUNDED}
    assert next(iter(found["models"])) == "base"
    measured = {(row["model"], row["stage"]) for row in found["layers"]}
    assert measured == {(model, stage.name) for model in found["models"] for stage in COMPILED_STAGES}
    assert table(found["layers"], found["beyond_fp16"]) in (ROOT / "docs" / "gpu.md").read_text()
    assert RESULTS.with_suffix(".png").is_file()
    assert found["conditions"]["inputs"]


def test_rows_are_of_what_is_held_in_fp16() -> None:
    ranges = [
        ActivationRange("mask", "Where", "", 3e38, float("inf")),
        ActivationRange("scores", "MatMul", "layer.0", 12.0, 1e-4),
        ActivationRange("faint", "Add", "layer.0", 1e-6, 0.02),
        ActivationRange("loud", "Add", "layer.1", 7e4, float("inf")),
    ]
    held = {"scores", "faint", "loud"}
    rows = layer_rows({"model": "m", "stage": "s"}, ranges, held)
    assert [(row["layer"], row["tensors"], row["largest"], row["rounded"]) for row in rows] == [
        ("layer.0", 2, 12.0, 0.02),
        ("layer.1", 1, 7e4, 1.0),
    ]
    beyond = beyond_rows({"model": "m", "stage": "s"}, ranges, held)
    assert {row["tensor"]: row["mended"] for row in beyond} == {"mask": False, "faint": True, "loud": True}
    assert table(rows, beyond).splitlines()[2] == "| `m` | `s` | 70,000 | 106.9% | Add in layer.1 | 100.00% | 3 | 2 |"


@pytest.mark.slow
def test_a_checkpoint_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_checkpoint(checkpoint_from_preset(TINY.name, "meld"), tmp_path / "tiny")
    main([f"tiny={tmp_path / 'tiny'}", "--media", str(SAMPLES), "--out", str(tmp_path / "out.json")])
    found = json.loads((tmp_path / "out.json").read_text())
    assert {row["stage"] for row in found["layers"]} == {stage.name for stage in COMPILED_STAGES}
    assert found["models"]["tiny"]["families"] == {"image": "vit", "audio": "wav2vec2", "text": "bert"}
    assert {"encoder.layer.0", "encoder.layers.0"} <= {row["layer"] for row in found["layers"]}
    assert table(found["layers"], found["beyond_fp16"]) in capsys.readouterr().out
    assert (tmp_path / "out.png").stat().st_size > 1000
    assert str(tmp_path) not in (tmp_path / "out.json").read_text()
