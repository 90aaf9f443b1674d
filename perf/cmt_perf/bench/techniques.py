"""`make bench-techniques`: what each technique is worth, one on top of the other, from the system that a team serves
first to our pipeline. All of them answer the same requests in turns, on one machine.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cmt_engine.engine import Precision
from cmt_perf.bench.measure import Measured, interleaved
from cmt_perf.bench.ratio import ratio_of
from cmt_perf.bench.report import COLOURS, drawn, write_page
from cmt_perf.bench.run import CLAIMED_MS, Fusion, conventional
from cmt_perf.bench.scenarios import SINGLE_STREAM, Size
from cmt_perf.bench.systems import System, baseline, pipeline
from cmt_perf.conditions import conditions, to_text
from cmt_pipeline.progress import Progress
from cmt_release.release import Release, newest_release

FIRST, CROSS_MODAL = "conventional fusion, eager PyTorch fp32", "cross-modal fusion"
STEPS: Mapping[str, Precision] = {
    "encoders side by side, OpenVINO fp32": "fp32",
    "bf16": "bf16",
    "int8": "int8",
}
ROUNDS, REQUESTS = 4, 12
RESULT, PRECISIONS = Path("perf/results/techniques.json"), Path("perf/results/precision.json")


@contextlib.contextmanager
def systems(state: Path, releases: Sequence[Release], work: Path) -> Iterator[list[System]]:
    """Every step, served: each has what those before it have."""
    with contextlib.ExitStack() as stack:
        fusions: dict[str, Fusion] = {FIRST: "conventional", CROSS_MODAL: "cmt"}
        served = [
            stack.enter_context(baseline(name, conventional(releases[-1], state / "bench", model), work / model))
            for name, model in fusions.items()
        ]
        for name, release in zip(STEPS, releases, strict=True):
            served.append(stack.enter_context(pipeline(name, release, work / release.manifest.info.precision)))
        yield served


def rows_of(found: Sequence[Measured]) -> list[dict[str, Any]]:
    """Of each step: its figures, and how many times as fast it is as the first."""
    return [{"step": m.system} | m.figures() | {"times_as_fast": round(ratio_of(found[0], m).ratio, 2)} for m in found]


def table(rows: Sequence[Mapping[str, Any]], precisions: Sequence[Mapping[str, Any]]) -> str:
    """Markdown. precisions: rows of precision.json, for what a step costs in F1 on trained weights."""
    f1 = {row["precision"]: f"{row['weighted_f1']:.3f}" for row in precisions}
    of_step = {CROSS_MODAL: "fp32", **STEPS}
    lines = [
        "| technique, on top of those above | p50 | times as fast | CPU s a request | weighted F1 of `mini` |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        time = f"{row['p50_ms']:.0f} ms | {row['times_as_fast']:.1f} | {row['cpu_s_per_request']:.2f}"
        lines.append(f"| {row['step']} | {time} | {f1.get(of_step.get(row['step'], ''), '')} |")
    return "\n".join(lines)


def waterfall(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """PNG: what each step takes off."""

    def draw(axes: Any) -> None:
        for index, row in enumerate(rows):
            before = rows[index - 1]["p50_ms"] if index else row["p50_ms"]
            axes.barh(index, row["p50_ms"], color=COLOURS[1])
            axes.barh(index, max(0.0, before - row["p50_ms"]), left=row["p50_ms"], color="#dddddd")
            axes.text(
                max(before, row["p50_ms"]), index, f" {row['p50_ms']:.0f} ms, {row['times_as_fast']:.1f}x", va="center"
            )
        axes.axvline(CLAIMED_MS, color="#888888", linestyle=":", label="the paper's 128 ms")
        axes.set_yticks(range(len(rows)), [row["step"] for row in rows])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.55 * max(row["p50_ms"] for row in rows))
        axes.set(xlabel="p50 in ms (grey: what the step took off)", title="Technique by technique")
        axes.figure.legend(loc="outside lower center")

    return drawn(draw)


def measured(state: Path, progress: Progress, rounds: int = ROUNDS, requests: int = REQUESTS) -> dict[str, Any]:
    """Every step's figures, with their conditions."""
    releases = [newest_release(state / "releases", precision) for precision in STEPS.values()]
    with tempfile.TemporaryDirectory() as work, systems(state, releases, Path(work)) as served:
        found = interleaved(served, [replace(SINGLE_STREAM, requests=requests)], rounds, progress)
    described = conditions(releases[-1], rounds=rounds, requests=requests, size=asdict(Size()))
    return {"rows": rows_of(found), "conditions": described}


def main(state: Path, out: Path = RESULT) -> None:
    """Serves the newest releases of a state folder and writes `out` with its waterfall beside it."""
    result = measured(state, lambda what, done: print(f"{done:4.0%} {what}", file=sys.stderr, flush=True))
    out.write_text(to_text(result))
    out.with_suffix(".png").write_bytes(waterfall(result["rows"]))
    write_page(out.parent)
    print(table(result["rows"], json.loads(PRECISIONS.read_text())["rows"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(Path, sys.argv[2:]))
