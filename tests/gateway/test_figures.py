"""The gateway's page has the figures of the report."""

import json
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_has_the_figures_of_the_report() -> None:
    page = " ".join((ROOT / "docs" / "gateway.md").read_text().split())
    result = json.loads((ROOT / "perf" / "results" / "live.json").read_text())
    turns, storm = result["turns"], result["storm"]
    live, whole = turns["live_ms"], turns["whole_ms"]
    before, after = storm["saturation_per_s"]
    answered, refused = storm["answered_ms"], storm["refused_ms"]
    for told in (
        f"`{result['conditions']['release']['preset']}` {result['conditions']['release']['precision']}, "
        f"{turns['count']} turns of {turns['mean_length_s']} s",
        f"| from the end of a turn to its answer in the page | {live['p50']:.0f} | {live['p95']:.0f} |",
        f"| the same turns, whole by HTTP afterwards | {whole['p50']:.0f} | {whole['p95']:.0f} |",
        f"({before:.0f} a second; {after:.0f} after), {storm['offered_per_s']:.0f} requests a second",
        f"{storm['goodput_per_s']:.0f} answered a second, p50 {answered['p50']:.0f} and p95 {answered['p95']:.0f} ms",
        f"{100 * storm['refused']:.0f} % refused, p50 {refused['p50']:.0f} and p95 {refused['p95']:.0f} ms",
    ):
        assert told in page, told
    assert storm["otherwise"] == 0
