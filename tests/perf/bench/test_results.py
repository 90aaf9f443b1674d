"""Results in the repository: what the README says of them is what they say."""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "perf" / "results"


def test_the_readme_shows_the_summary() -> None:
    summary = json.loads((RESULTS / "summary.json").read_text())
    readme = " ".join((ROOT / "README.md").read_text().split())
    low, high = summary["ratio_p50_interval"]
    assert (
        f"p50 {summary['p50_ms']:.0f} ms, the conventional system beside it {summary['baseline_p50_ms']:.0f} ms"
        in readme
    )
    assert f"{summary['ratio_p50']:.1f} times as fast (95 % interval {low:.1f} to {high:.1f})" in readme
    assert f"{summary['overhead_ms']:.1f} ms of it Triton's own" in readme
    assert ("128 ms are not met" in readme) == (not summary["claims"]["mean_ms"]["met"])


def test_summary_and_report_are_of_one_run() -> None:
    summary, whole = (json.loads((RESULTS / name).read_text()) for name in ("summary.json", "bench.json"))
    assert summary["conditions"] == whole["conditions"]
    assert summary["p50_ms"] == whole["single_stream"]["pipeline"]["p50_ms"]
    assert (RESULTS / "bench.html").is_file()
