"""The tables of docs/performance.md, out of a bench's result.

python -m cmt_perf.bench.tables perf/results/bench.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
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


def growth_table(result: Mapping[str, Any]) -> str:
    """Markdown: how p50 and answers a second of ours and the baseline grow with load, batch and length."""
    lines = [
        "| | p50 | conventional | answers/s | conventional |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    rows = {(row["scenario"], row["system"]): row for row in result["growth"]}
    for scenario in dict.fromkeys(scenario for scenario, _ in rows):
        both = [rows[scenario, system] for system in (OURS, BASELINE)]
        times, rates = [f"{row['p50_ms']:,.0f} ms" for row in both], [f"{row['throughput']:.1f}" for row in both]
        lines.append(f"| {scenario} | {' | '.join(times + rates)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    found = json.loads(Path(sys.argv[1]).read_text())
    print(single_stream_table(found), growth_table(found), sep="\n", end="")
