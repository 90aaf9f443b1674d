"""The page of a bench is read on screens of any width, in the light and in the dark."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from browsers import CHROMIUM, contrast, needs_chromium
from cmt_perf.bench.report import keep_part, page, plots_of, write_report

RESULT = Path(__file__).parents[3] / "perf/results/bench.json"


@pytest.mark.long
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


def test_the_best_peer_and_the_share_of_the_peak_are_told() -> None:
    result = json.loads(RESULT.read_text())
    best = {"name": "fastapi:compiled", "ratio": 2.5, "low": 2.4, "high": 2.6}
    peak, p50_ms = result["peaks"]["gflops"]["int8"], result["single_stream"]["pipeline"]["p50_ms"]
    text = page({**result, "best_peer": best, "gflop": {"encode_audio": 0.6 * peak * p50_ms / 1e3}}, {})
    assert "2.50 times as fast (2.40 to 2.60) as the best of the peers: CMT in FastAPI, torch.compile, frozen." in text
    assert f"At its p50 that is 60% of the {peak:.0f} GFLOP/s that this machine multiplies at most, in int8." in text
    without = page({**result, "best_peer": {}, "gflop": {}}, {})
    assert "best of the peers" not in without
    assert "GFLOP" not in without.split("Conditions")[0]


def test_what_is_measured_is_kept_until_there_is_a_report(tmp_path: Path) -> None:
    result = json.loads(RESULT.read_text())
    keep_part({"single_stream": result["single_stream"]}, tmp_path)
    (kept,) = tmp_path.iterdir()
    assert json.loads(kept.read_text()) == {"single_stream": result["single_stream"]}
    write_report(result, tmp_path)
    assert not kept.exists()
    assert json.loads((tmp_path / "bench.json").read_text()) == result


def test_how_far_peers_are_off_is_told() -> None:
    parity = {"fastapi:onnxruntime": {"encode_image": 0.036, "encode_audio": 0.378}, "fastapi:compiled": {}}
    text = page({**json.loads(RESULT.read_text()), "peer_parity": parity}, {})
    told = "CMT in FastAPI, ONNX Runtime, dynamic int8: encode_audio is 0.38 off PyTorch fp32, its other stages less"
    assert f"{told}; an export of ours is refused beyond 0.1." in text
    assert text.count("off PyTorch fp32") == 1
