"""The tables of docs/performance.md, out of a bench's result and of the summaries of several.

python -m cmt_perf.bench.tables perf/results/bench.json perf/results/summary.json perf/results/avx2/summary.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cmt_perf.bench.run import BASELINE, OURS

#: What computes in a peer.
COMPUTED = {
    "eager": "eager PyTorch fp32",
    "compiled": "torch.compile, frozen",
    "torchao": "torch.compile, torchao's int8",
    "onnxruntime": "ONNX Runtime, dynamic int8",
    "openvino": "OpenVINO, NNCF's int8",
}
SERVED = {"fastapi": "FastAPI", "pytriton": "PyTriton", "bentoml": "BentoML"}
#: How a system is named in the docs, from the slow ones to ours.
NAMES = {
    BASELINE: "conventional fusion, eager PyTorch fp32 on Triton",
    **{
        server if runtime == "eager" else f"{server}:{runtime}": f"CMT in {name}, {computed}"
        for runtime, computed in COMPUTED.items()
        for server, name in SERVED.items()
    },
    f"{BASELINE}'s model through the pipeline": "the conventional model through our pipeline",
    OURS: "CMT through our pipeline",
}


def single_stream_table(result: Mapping[str, Any]) -> str:
    """Markdown: a row for each system, one request at a time."""
    lines = [
        "| single stream, the same requests | p50 | p95 | answers/s | CPU s a request |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for system, name in NAMES.items():
        found = result["single_stream"].get(system)
        if found:
            times = f"{found['p50_ms']:.0f} ms | {found['p95_ms']:.0f} ms"
            lines.append(f"| {name} | {times} | {found['throughput']:.1f} | {found['cpu_s_per_request']:.2f} |")
    return "\n".join(lines) + "\n"


#: What multiplies int8 on a processor, the best first.
INSTRUCTIONS = {"amx_int8": "AMX", "avx512_vnni": "AVX-512 VNNI", "avx2": "AVX2"}


def machines_table(summaries: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a row for each bench, of a preset on a machine."""
    lines = [
        "| machine | preset | p50 | conventional | times as fast | best peer | times as fast | share of the peak |",
        "| --- | --- | ---: | ---: | ---: | --- | ---: | ---: |",
    ]
    for found in summaries:
        told, best = found["conditions"], found.get("best_peer")
        instructions = next(name for flag, name in INSTRUCTIONS.items() if flag in told["cpu_features"])
        cells = [
            f"{told['cores']} cores {told['cpu']}, {instructions}, {told['date'][:10]}",
            f"`{told['release']['preset']}`, `{told['release']['fusion']}`",
            f"{found['p50_ms']:.0f} ms",
            f"{found['baseline_p50_ms']:.0f} ms",
            _times(found["ratio_p50"], *found["ratio_p50_interval"]),
            NAMES[best["name"]].removeprefix("CMT in ") if best else "",
            _times(best["ratio"], best["low"], best["high"]) if best else "",
            f"{100 * found['share_of_peak']:.0f}%" if "share_of_peak" in found else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _times(ratio: float, low: float, high: float) -> str:
    return f"{ratio:.2f} [{low:.2f}, {high:.2f}]"


def growth_table(result: Mapping[str, Any]) -> str:
    """Markdown: how p50 and answers a second of ours and the baseline grow with load, batch and length."""
    lines = [
        "| | p50 | conventional | answers/s | conventional |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    rows = {(row["scenario"], row["system"]): row for row in result["growth"]}
    for scenario in dict.fromkeys(scenario for scenario, _ in rows):
        both = [rows[scenario, system] for system in (OURS, BASELINE)]
        refused = [f", {row['errors']:.0f} refused" if row["errors"] else "" for row in both]
        times = [f"{row['p50_ms']:,.0f} ms{told}" for row, told in zip(both, refused, strict=True)]
        rates = [f"{row['throughput']:.1f}" for row in both]
        lines.append(f"| {scenario} | {' | '.join(times + rates)} |")
    return "\n".join(lines) + "\n"


def open_loop_table(result: Mapping[str, Any]) -> str:
    """Markdown: latencies of the pipeline at shares of the load that saturates it."""
    lines = ["| load | requests/s | p50 | p99 | p99 / p50 |", "| --- | ---: | ---: | ---: | ---: |"]
    for row in result["open_loop"]:
        share, times = row["scenario"].split()[-1], f"{row['p50_ms']:,.0f} ms | {row['p99_ms']:,.0f} ms"
        lines.append(f"| {share} | {row['offered']:.2f} | {times} | {row['p99_ms'] / row['p50_ms']:.1f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    bench, *summaries = (json.loads(Path(path).read_text()) for path in sys.argv[1:])
    tables = single_stream_table(bench), growth_table(bench), open_loop_table(bench), machines_table(summaries)
    print(*tables, sep="\n", end="")
