"""The upgrade figures of the docs are those of perf/results/upgrade.json, and hold what is promised."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cmt_perf.upgrade_report import page, plot, summary_table

ROOT = Path(__file__).parents[2]
RESULT: dict[str, Any] = json.loads((ROOT / "perf/results/upgrade.json").read_text())


def test_docs_and_page_show_what_was_measured() -> None:
    assert summary_table(RESULT) in (ROOT / "docs" / "upgrades.md").read_text()
    assert page(RESULT) == (ROOT / "perf/results/upgrade.md").read_text()
    assert all(row["fault"] in page(RESULT) for row in RESULT["faults"])


def test_nothing_was_lost_or_mixed() -> None:
    assert RESULT["answers"] >= 20_000
    assert RESULT["errors"] == RESULT["lost"] == RESULT["mixed"] == RESULT["mislabelled"] == 0
    assert RESULT["naive"]["mixed"] > 0  # the judge can say no
    assert all(row["right"] for row in RESULT["faults"])
    failing = ("server killed", "process of a stage killed", "live release broken", "live requests fail")
    assert all(row["requests_lost"] == 0 for row in RESULT["faults"] if not row["fault"].startswith(failing))
    assert all(row["requests_lost"] <= 10 for row in RESULT["faults"] if "killed" in row["fault"])


def test_figures_come_with_their_conditions() -> None:
    conditions = RESULT["conditions"]
    assert {"cpu", "cores", "versions", "commit", "command", "load_average", "release", "traffic"} <= conditions.keys()


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot(RESULT, tmp_path / "upgrade.png")
    assert (tmp_path / "upgrade.png").stat().st_size > 10_000
