"""What docs/performance.md says of overload is what was measured."""

from __future__ import annotations

import json
from pathlib import Path

from cmt_perf.overload import RESULT

ROOT = Path(__file__).parents[2]


def test_the_page_says_what_was_measured() -> None:
    result = json.loads((ROOT / RESULT).read_text())
    rows = {row["share"]: row for row in result["rows"]}
    page = " ".join((ROOT / "docs" / "performance.md").read_text().split())
    double, fourfold = rows[2.0], rows[4.0]
    goodputs = [round(100 * row["goodput_of_saturation"]) for row in (double, fourfold)]
    ratios = [row["p99_ms"] / rows[0.8]["p99_ms"] for row in (double, fourfold)]
    assert f"of the {result['saturation_per_s']:.0f} answers a second" in page
    assert f"{goodputs[0]} % are given at 2 times that load and {goodputs[1]} % at 4 times" in page
    assert f"is {ratios[0]:.1f} and {ratios[1]:.1f} times that at 0.8" in page
    assert f"{double['refusal_p50_ms']:.0f} and {fourfold['refusal_p50_ms']:.0f} ms as a rule" in page
    assert f"{double['refusal_p99_ms']:.0f} and {fourfold['refusal_p99_ms']:.0f} ms at p99" in page
    assert not any(row["late"] + row["failed"] for row in result["rows"])
