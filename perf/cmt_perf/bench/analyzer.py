"""The real perf_analyzer, as a second opinion on the same closed loop.

perf_analyzer counts from the moment at which it sends: in a closed loop that is right, and the two must agree.
"""

from __future__ import annotations

import base64
import csv
import json
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cmt_client import Item
from cmt_client.requests import from_item
from cmt_pipeline.limits import DEFAULT_LIMITS

BINARY = "perf_analyzer"
#: `make perf-analyzer` puts the binary and its libraries here.
FETCHED = Path(".cmt/perf_analyzer")
TIMEOUT_S = 900.0


class AnalyzerMissing(RuntimeError):
    """perf_analyzer isn't there."""


def find_analyzer(folder: Path = FETCHED) -> tuple[Path, dict[str, str]]:
    """The binary, and the environment that it needs. AnalyzerMissing says how to get it."""
    fetched = folder / BINARY
    if fetched.is_file():
        return fetched, {"LD_LIBRARY_PATH": str(folder.absolute())}
    installed = shutil.which(BINARY)
    if installed is None:
        raise AnalyzerMissing(f"{BINARY} is neither in {folder} nor on the PATH; get it with `make perf-analyzer`")
    return Path(installed), {}


def closed_loop(
    url: str, items: Sequence[Item], concurrency: int, requests: int, folder: Path = FETCHED
) -> dict[str, float]:
    """Latencies in milliseconds and throughput of a closed loop over gRPC. RuntimeError when perf_analyzer fails."""
    binary, environment = find_analyzer(folder)
    with tempfile.TemporaryDirectory() as work:
        inputs, table = Path(work) / "inputs.json", Path(work) / "table.csv"
        inputs.write_text(json.dumps(input_data(items)))
        command = [
            *(str(binary), "-m", "emotion", "-u", url.removeprefix("grpc://"), "-i", "grpc"),
            *("--input-data", str(inputs), "--concurrency-range", str(concurrency)),
            *("--request-count", str(requests), "-f", str(table), "--percentile=50"),
        ]
        ran = subprocess.run(
            command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=TIMEOUT_S
        )
        if ran.returncode or not table.is_file():
            raise RuntimeError(f"{BINARY} ended with {ran.returncode}: {(ran.stdout + ran.stderr)[-800:]}")
        return read_table(table)


def input_data(items: Sequence[Item | Mapping[str, Any]]) -> dict[str, Any]:
    """Requests as perf_analyzer reads them: of bytes, each element with its length before it, in base64.

    Raises InvalidInput for what the client would not send.
    """
    return {
        "data": [
            {
                name: {"content": {"b64": _element(tensor[0, 0])}, "shape": [1]}
                for name, tensor in from_item(item, DEFAULT_LIMITS).inputs.items()
            }
            for item in items
        ]
    }


def read_table(path: Path) -> dict[str, float]:
    """The one row of perf_analyzer's CSV: microseconds there, milliseconds here."""
    with path.open() as file:
        row = next(csv.DictReader(file))
    named = {"p50_ms": "p50 latency", "p95_ms": "p95 latency", "p99_ms": "p99 latency"}
    found = {name: float(row[column]) / 1e3 for name, column in named.items() if row.get(column)}
    return found | {"throughput": float(row["Inferences/Second"])}


def _element(data: bytes) -> str:
    return base64.b64encode(struct.pack("<I", len(data)) + data).decode()
