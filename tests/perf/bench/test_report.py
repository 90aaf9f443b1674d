"""The page of a bench is read on screens of any width, in the light and in the dark."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from browsers import CHROMIUM, contrast, needs_chromium
from cmt_perf.bench.report import page, plots_of

RESULT = Path(__file__).parents[3] / "perf/results/bench.json"


@needs_chromium
@pytest.mark.xdist_group("browser")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390])
def test_the_page_fits(width: int, scheme: Any, tmp_path: Path) -> None:
    result = json.loads(RESULT.read_text())
    (tmp_path / "bench.html").write_text(page(result, plots_of(result)))
    sync = pytest.importorskip("playwright.sync_api")
    with sync.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        seen = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        seen.goto((tmp_path / "bench.html").as_uri())
        assert seen.evaluate("document.documentElement.scrollWidth") <= width
        cut = "[...document.querySelectorAll('.wide')].filter(e => e.scrollWidth > e.clientWidth).length"
        if width == 1200:
            assert seen.evaluate(cut) == 0, "every table is seen whole"
        for part in ("h2", "td", "pre"):
            assert contrast(seen, f"{part} >> nth=0") > 7, part
        assert seen.evaluate("[...document.images].every(image => image.clientWidth > 320)")
        browser.close()


def test_peers_and_the_share_of_the_peak_are_told() -> None:
    result = json.loads(RESULT.read_text())
    text = page(result, {})
    best = result["best_peer"]
    assert f"{best['ratio']:.2f} times as fast" in text
    assert f"{sum(result['gflop'].values()):.0f} GFLOP" in text
    without = page({**result, "best_peer": {}}, {})
    assert "best of the peers" not in without
