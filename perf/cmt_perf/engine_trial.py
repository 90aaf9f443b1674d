"""`make bench-engines`: engines side by side on this machine's CPU, their parity and their times, stage by stage.

    python -m cmt_perf.engine_trial STATE RESULT [--models mini=cmt/cmt_cli/weights/mini-meld,base] …

One weights, one input (4 s of sound, 64 tokens, an image), in turns, from NumPy to NumPy as the server runs them, on
all cores; the last stage, `fuse`, takes the features of all three.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cmt_engine.engine import Runner, open_engine
from cmt_export.export import ExportOptions, GoldenSample, export
from cmt_perf.bench.machine import peaks
from cmt_perf.conditions import conditions, to_text
from cmt_perf.gpu.stages import stage_inputs
from cmt_pipeline.stages import COMPILED_STAGES, Stage, sized
from cmt_pipeline.tensors import Arrays
from cmt_release.release import Release

ROUNDS, WARM_UP = 40, 4
MODELS = "mini=cmt/cmt_cli/weights/mini-meld,base"


def measure(models: Sequence[str], engines: Sequence[str], precisions: Sequence[str], state: Path) -> dict[str, Any]:
    """Parity rows and times. models: presets, with random weights, or PRESET=CHECKPOINT. A row's `release` is the
    precision that was asked for: in int8 a fusion has another."""
    parity: list[dict[str, Any]] = []
    times: list[dict[str, Any]] = []
    for model in models:
        preset, _, checkpoint = model.partition("=")
        for precision in precisions:
            releases = {engine: exported(preset, checkpoint, engine, precision, state) for engine in engines}
            for release in releases.values():
                rows = (dict(row) for row in release.manifest.parity if row["engine"] != "onnx")
                parity += [{"preset": preset, "release": precision} | row for row in rows]
            times += [
                {"preset": preset, "precision": precision, "stage": stage.name} | in_turns(stage, releases)
                for stage in COMPILED_STAGES
            ]
    return {"conditions": conditions(peaks=vars(peaks()), rounds=ROUNDS), "parity": parity, "stages": times}


def table(result: Mapping[str, Any]) -> str:
    """Markdown: of each stage, how far each engine is from PyTorch fp32, and what it takes."""
    engines = list(dict.fromkeys(row["engine"] for row in result["parity"]))
    errors = {(r["preset"], r["release"], r["what"], r["engine"]): r["error"] for r in result["parity"]}
    head = ["preset", "precision", "stage", *(f"{e}, {what}" for e in engines for what in ("parity", "ms"))]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * 3}{' ---: |' * (len(head) - 3)}"]
    for row in result["stages"]:
        cells = [f"`{row['preset']}`", row["precision"], f"`{row['stage']}`"]
        for engine in engines:
            error = errors[row["preset"], row["precision"], row["stage"], engine]
            cells += [f"{error:.1e}", f"{row[f'{engine}_ms']:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def exported(preset: str, checkpoint: str, engine: str, precision: str, state: Path) -> Release:
    """checkpoint: a folder; without one the weights are random."""
    options = ExportOptions(
        preset=preset,
        checkpoint=Path(checkpoint) if checkpoint else None,
        random_weights=not checkpoint,
        engine=engine,
        precision=precision,
    )
    return export(options, state / "releases", GoldenSample(), lambda what, _: print(preset, what, flush=True))[0]


def in_turns(stage: Stage, releases: Mapping[str, Release]) -> dict[str, float]:
    """Median milliseconds of each engine."""
    stage = sized(stage, next(iter(releases.values())).manifest.features)
    runners = {engine: open_engine(release.stage_folder(stage.name)) for engine, release in releases.items()}
    tensors = stage_inputs(stage, 1, "cpu")
    arrays: Arrays = {spec.name: tensor.numpy() for spec, tensor in zip(stage.inputs, tensors, strict=True)}
    found: dict[str, list[float]] = {engine: [] for engine in runners}
    for number in range(WARM_UP + ROUNDS):
        for engine, runner in runners.items():
            took = _timed(runner, arrays)
            if number >= WARM_UP:
                found[engine].append(took)
    return {f"{engine}_ms": round(statistics.median(took), 2) for engine, took in found.items()}


def _timed(runner: Runner, inputs: Arrays) -> float:
    start = time.perf_counter()
    runner.run(inputs)
    return (time.perf_counter() - start) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("state", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--engines", default="aotinductor,openvino")
    parser.add_argument("--precisions", default="bf16,fp32")
    given = parser.parse_args()
    models, engines, precisions = (one.split(",") for one in (given.models, given.engines, given.precisions))
    given.result.write_text(to_text(measure(models, engines, precisions, given.state)))


if __name__ == "__main__":
    main()
