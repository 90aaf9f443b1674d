"""Engines side by side: what the page says is what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cmt_cli.state import State
from cmt_perf.engine_trial import in_turns, table
from cmt_pipeline.stages import STAGES
from cmt_release.release import Release

ROOT = Path(__file__).parents[2]


def test_the_page_has_the_table() -> None:
    result = json.loads((ROOT / "engines" / "results" / "engines.json").read_text())
    assert table(result) in (ROOT / "docs" / "gpu.md").read_text()
    assert all(row["error"] <= row["tolerance"] for row in result["parity"])


def test_every_engine_has_its_turns(tiny: Release, tiny_state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cmt_perf.engine_trial.ROUNDS", 2)
    assert tiny_state.releases.is_dir()
    found = in_turns(STAGES["encode_text"], {"one": tiny, "other": tiny})
    assert sorted(found) == ["one_ms", "other_ms"]
    assert all(ms > 0 for ms in found.values())
