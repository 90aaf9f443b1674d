"""Results in the repository: what the docs say of them is what they say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cmt_perf.bench.measure import Measured, Round
from cmt_perf.bench.run import summary_of
from cmt_perf.bench.scenarios import SINGLE_STREAM
from cmt_perf.bench.tables import growth_table, machines_table, open_loop_table, single_stream_table
from cmt_perf.bench.techniques import rows_of, table, waterfall
from cmt_perf.engine_trial import table as engine_table
from cmt_perf.precision_trial import table as precision_table

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "perf" / "results"
PAGE = ROOT / "docs" / "performance.md"


def test_the_docs_show_the_summary() -> None:
    summary = json.loads((RESULTS / "summary.json").read_text())
    page = " ".join(PAGE.read_text().split())
    low, high = summary["ratio_p50_interval"]
    assert (
        f"p50 {summary['p50_ms']:.0f} ms, the conventional system beside it {summary['baseline_p50_ms']:.0f} ms" in page
    )
    assert f"{summary['ratio_p50']:.1f} times as fast (95 % interval {low:.1f} to {high:.1f})" in page
    assert f"{summary['overhead_ms']:.1f} ms of it Triton's own" in page
    assert ("128 ms are not met" in page) == (not summary["claims"]["mean_ms"]["met"])


def test_the_docs_show_techniques_and_precisions() -> None:
    techniques, precisions = (
        json.loads((RESULTS / f"{n}.json").read_text())["rows"] for n in ("techniques", "precision")
    )
    page = PAGE.read_text()
    assert table(techniques, precisions) in page
    assert precision_table(precisions) in page


def test_the_docs_show_the_bench() -> None:
    bench, page = json.loads((RESULTS / "bench.json").read_text()), PAGE.read_text()
    assert single_stream_table(bench) in page
    assert growth_table(bench) in page
    assert open_loop_table(bench) in page
    half = next(row for row in bench["open_loop"] if "50%" in row["scenario"])
    assert half["p99_ms"] > 2.5 * half["p50_ms"], "what the page calls missed"
    assert abs(bench["perf_analyzer"]["p50_difference"]) < 0.02
    peaks = bench["peaks"]["gflops"]
    assert f"{peaks['int8']:.0f} GFLOP/s (bf16 {peaks['bf16']:.0f}, fp32 {peaks['fp32']:.0f})" in " ".join(page.split())


def test_the_docs_say_how_it_stands_beside_tuned_peers() -> None:
    bench, summary = (json.loads((RESULTS / f"{name}.json").read_text()) for name in ("bench", "summary"))
    said, best = " ".join(PAGE.read_text().split()), summary["best_peer"]
    low, high = best["low"], best["high"]
    assert f"{best['ratio']:.2f} times as fast as PyTriton with OpenVINO ({low:.2f} to {high:.2f})" in said
    assert best["name"] == "pytriton:openvino"
    assert f"at the p50 it does {100 * summary['share_of_peak']:.0f} % of that" in said
    off = bench["peer_parity"]
    assert f"they are {off[best['name']]['encode_audio']:.1f} off" in said
    assert f"ONNX Runtime's dynamic int8 is {off['fastapi:onnxruntime']['encode_audio']:.2f} off" in said
    p50 = {name: found["p50_ms"] for name, found in bench["single_stream"].items()}
    assert f"is {p50['fastapi:compiled'] / p50['pipeline']:.2f} times as fast as torch.compile in bf16" in said
    assert f"and {p50['fastapi:torchao'] / p50['pipeline']:.2f} times as torchao's int8" in said
    assert f"behind the same FastAPI {p50['fastapi'] / p50['fastapi:compiled']:.2f} times" in said
    assert f"OpenVINO's int8 {p50['fastapi'] / p50['fastapi:openvino']:.2f} times" in said
    assert f"the same OpenVINO) is worth {p50['fastapi:openvino'] / p50['pipeline']:.2f}" in said


def test_the_docs_show_engines_on_a_processor_without_vnni() -> None:
    result = json.loads((RESULTS / "avx2" / "engines.json").read_text())
    assert engine_table(result) in PAGE.read_text()
    assert result["conditions"]["cpu_features"] == ["avx2"]
    assert all(row["error"] <= row["tolerance"] for row in result["parity"])
    took = {(r["precision"], r["stage"]): r for r in result["stages"] if r["preset"] == "base"}
    encoders = [f"encode_{m}" for m in ("image", "audio", "text")]
    shares = [took["int8", stage]["onnxruntime_ms"] / took["int8", stage]["openvino_ms"] for stage in encoders]
    assert (round(min(shares), 1), round(max(shares), 1)) == (0.6, 0.9)
    narrow, whole = (sum(took[p, stage]["openvino_ms"] for stage in encoders) for p in ("int8", "fp32"))
    assert narrow > whole, "what OpenVino.faster_here says"


def test_the_docs_show_what_a_processor_without_vnni_does() -> None:
    bench, summary = (json.loads((RESULTS / "avx2" / f"{name}.json").read_text()) for name in ("bench", "summary"))
    page = PAGE.read_text()
    assert single_stream_table(bench) in page
    assert open_loop_table(bench) in page
    others = [json.loads((RESULTS / name).read_text()) for name in ("summary.json", "fast/summary.json")]
    assert machines_table([*others, summary]) in page
    best, (low, high), said = summary["best_peer"], summary["ratio_p50_interval"], " ".join(page.split())
    assert f"{best['ratio']:.2f} times as fast ({best['low']:.2f} to {best['high']:.2f})" in said
    assert f"{summary['ratio_p50']:.2f} times as fast as the conventional system ({low:.2f} to {high:.2f})" in said
    assert f"at the p50 it does {100 * summary['share_of_peak']:.0f} % of that" in said
    p50 = {name: found["p50_ms"] for name, found in bench["single_stream"].items()}
    assert f"the same FastAPI {p50['fastapi'] / p50['fastapi:onnxruntime']:.2f} times" in said
    assert f"is worth {p50['fastapi'] / p50['fastapi:compiled']:.2f} times" in said
    assert f"the same OpenVINO) {p50['fastapi:openvino'] / p50['pipeline']:.2f}" in said
    assert not {"avx512_vnni", "amx_int8"} & set(bench["conditions"]["cpu_features"])


def test_the_docs_show_fast_before_and_since() -> None:
    bench, summary, before = (
        json.loads((RESULTS / "fast" / f"{name}.json").read_text()) for name in ("bench", "summary", "before")
    )
    page = PAGE.read_text()
    assert single_stream_table(bench) in page
    assert open_loop_table(before) in page
    assert open_loop_table(bench) in page
    said, best, (low, high) = " ".join(page.split()), summary["best_peer"], summary["ratio_p50_interval"]
    assert summary["p50_ms"] > 64, "what the page calls missed"
    assert f"p50 {summary['p50_ms']:.0f} ms, {summary['ratio_p50']:.1f} times as fast as the conventional" in said
    assert f"({low:.1f} to {high:.1f}). A request is {summary['gflop']:.0f} GFLOP" in said
    assert f"it does {100 * summary['share_of_peak']:.0f} % of that" in said
    p50 = {name: found["p50_ms"] for name, found in bench["single_stream"].items()}
    assert best["name"] == "fastapi:openvino"
    times = f"{best['ratio']:.2f} times as fast ({best['low']:.2f} to {best['high']:.2f})"
    assert f"FastAPI with OpenVINO is at {p50['fastapi:openvino']:.0f} ms, {times}" in said
    assert f"{p50['fastapi:compiled'] / p50['pipeline']:.2f} times as fast as torch.compile" in said
    assert f"and {p50['fastapi:torchao'] / p50['pipeline']:.2f} times as torchao's int8" in said
    assert f"p50 was {before['p50_ms']:.0f} ms" in said
    shares = [found["open_loop"][0]["offered"] for found in (bench, before)]
    assert f"a saturation that is {100 * (shares[0] / shares[1] - 1):.0f} % higher" in said


def test_refusals_stand_in_the_table_of_growth() -> None:
    table = growth_table(json.loads((RESULTS / "avx2" / "bench.json").read_text()))
    (refused,) = [line for line in table.splitlines() if "refused" in line]
    assert refused.startswith("| concurrency 16 |")
    assert ", 39 refused" in refused


def test_summaries_are_of_their_benches() -> None:
    for folder in (RESULTS, RESULTS / "fast", RESULTS / "avx2"):
        bench, summary = (json.loads((folder / f"{name}.json").read_text()) for name in ("bench", "summary"))
        assert summary["saturation_throughput_ratio"] == summary_of(bench)["saturation_throughput_ratio"]


@pytest.mark.long
def test_each_step_stands_beside_the_first() -> None:
    """Twice as fast is twice as fast, and the picture is one."""
    rounds = [Round((200.0, 210.0, 190.0), 0.6, 0, 0.4, 100.0), Round((200.0, 205.0, 195.0), 0.6, 0, 0.4, 100.0)]
    halved = [replace(one, latencies_ms=tuple(ms / 2 for ms in one.latencies_ms)) for one in rounds]
    rows = rows_of([Measured("first", SINGLE_STREAM, rounds), Measured("second", SINGLE_STREAM, halved)])
    assert [(row["step"], row["p50_ms"], row["times_as_fast"]) for row in rows] == [
        ("first", 200, 1),
        ("second", 100, 2),
    ]
    assert "| second | 100 ms | 2.0 | 0.40 |  |" in table(rows, [])
    named = [{**rows[1], "step": "int8"}]
    assert "| int8 | 100 ms | 2.0 | 0.40 | 0.878 |" in table(named, [{"precision": "int8", "weighted_f1": 0.8781}])
    assert waterfall(rows).startswith(b"\x89PNG")


def test_summary_and_report_are_of_one_run() -> None:
    summary, whole = (json.loads((RESULTS / name).read_text()) for name in ("summary.json", "bench.json"))
    assert summary["conditions"] == whole["conditions"]
    assert summary["p50_ms"] == whole["single_stream"]["pipeline"]["p50_ms"]
    assert (RESULTS / "bench.html").is_file()
