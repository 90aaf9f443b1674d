"""`make check-gpu`: what only a GPU can show, on the machine of whoever has one, and one JSON file to send back.

    python -m cmt_perf.gpu.check --preset base --out gpu-check.json

Builds plans of every precision with their parity, serves one in the tritonserver on PATH, asks it golden requests at
all seven subsets, and moves it to another release under load. What fails is written down with its reason, and the steps
that don't need it go on. With --dry it goes the same way on the CPU, with OpenVINO in TensorRT's place.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from cmt_client import EmotionClient
from cmt_engine.engine import ENGINES
from cmt_perf.gpu.machine import gpu_machine
from cmt_perf.traffic import Traffic, TrafficPlan, traffic_items
from cmt_perf.upgrade_faults import BARE, SHORT
from cmt_perf.upgrade_rig import Rig, rig_on, separation, verdict_on
from cmt_pipeline.modality import SUBSETS
from cmt_pipeline.stages import COMPILED_STAGES
from cmt_release.durable import replace_file
from cmt_release.release import Release, open_release
from cmt_server.doctor.artefacts import PLATFORMS

EXPORT_TIMEOUT_S = 3600.0
LAST_WORDS = 2000  # characters of what a command said before it failed

#: Precision and seed -> the release of them.
Build = Callable[[str, int], Release]


@dataclass(frozen=True)
class CheckOptions:
    """precisions: what is built; the last one is served. answers: before the upgrade and after it, under load.

    upgrade: options of the upgrade; traffic: those of the load, as TrafficPlan has them.
    """

    preset: str = "base"
    engine: str = "tensorrt"
    precisions: tuple[str, ...] = ("fp32", "bf16", "fp16")
    answers: int = 200
    upgrade: tuple[str, ...] = SHORT
    traffic: Mapping[str, Any] = field(default_factory=dict)


#: For a machine that has other things to do.
GENTLE = {"closed_grpc": 1, "closed_http": 0, "open_rate": 2.0, "items": 7}
DRY = CheckOptions("mini", "openvino", ("fp32",), 10, BARE, GENTLE)


@dataclass
class Report:
    """The file that is sent back, written anew after each step, so that a crash leaves what came before."""

    path: Path
    options: CheckOptions
    steps: list[dict[str, Any]] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return bool(self.steps) and all(step["passed"] for step in self.steps)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[dict[str, Any]]:
        """One step: the block fills its row. Whatever it raises is why the step failed, and goes no further."""
        row: dict[str, Any] = {"step": name, "passed": True}
        start = time.monotonic()
        try:
            yield row
        except Exception as error:  # what fails is what the file is for
            row |= {"passed": False, "why": f"{type(error).__name__}: {error}"}
        row["seconds"] = round(time.monotonic() - start, 1)
        self.steps.append(row)
        self._write()
        why = f": {row['why']}" if "why" in row else ""
        print(f"{'passed' if row['passed'] else 'FAILED'} {name} ({row['seconds']} s){why}", flush=True)

    def _write(self) -> None:
        values = {"passed": self.passed, "options": asdict(self.options), "steps": self.steps}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self.path, (json.dumps(values, indent=1) + "\n").encode(), self.path.parent)


def check(options: CheckOptions, state: Path, build: Build, report: Report) -> None:
    """All steps. state: its releases/ holds what `build` gives."""
    with report.step("machine") as row:
        row |= gpu_machine()
        if ENGINES[options.engine].backend and not row["gpus"]:
            raise RuntimeError("CUDA shows no GPU: start the container with --gpus all, or try --dry")
    first = None
    for precision in options.precisions:
        first = _built(options, build, precision, report)
    second = None
    with report.step("build the release to upgrade to"):
        second = build(options.precisions[-1], 2)
    if first and second:
        with tempfile.TemporaryDirectory(prefix="cmt-gpu-") as folder:
            _served(first, second, options, Path(folder), state, report)


def _built(options: CheckOptions, build: Build, precision: str, report: Report) -> Release | None:
    """A release, with its parity in the report."""
    release = None
    with report.step(f"build {precision}") as row:
        release = build(precision, 1)
        manifest = release.manifest
        row["versions"] = dict(manifest.versions)
        row["parity"] = [dict(entry) for entry in manifest.parity]
        if all(entry["engine"] != options.engine for entry in manifest.parity):
            raise RuntimeError(f"no parity was measured: {ENGINES[options.engine].closed_here()}")
    return release


def _served(first: Release, second: Release, options: CheckOptions, folder: Path, state: Path, report: Report) -> None:
    with contextlib.ExitStack() as stack:
        rig = None
        with report.step("serve"):
            rig = stack.enter_context(rig_on(first, folder, state=state))
        if rig is None:
            return
        with report.step("who runs the stages") as row:
            row["stages"] = {stage.name: _config(rig, stage.name) for stage in COMPILED_STAGES}
            wanted = ENGINES[options.engine].backend or "python"
            if wrong := [name for name, config in row["stages"].items() if config["backend"] != wanted]:
                raise RuntimeError(f"{', '.join(wrong)} aren't run by Triton's {wanted} backend")
        with report.step("golden requests at every subset") as row:
            row["subsets"] = len(SUBSETS)
            if wrong := rig.proven(first):
                raise RuntimeError("; ".join(wrong))
        with report.step("upgrade under load") as row:
            _upgraded(rig, first, second, options, folder, row)


def _config(rig: Rig, stage: str) -> dict[str, Any]:
    """What the server itself says of a stage: its backend, and where its instances run."""
    with urllib.request.urlopen(f"{rig.server.http_url}/v2/models/{stage}/config") as answer:  # noqa: S310
        config = json.load(answer)
    groups = [{key: group.get(key) for key in ("kind", "count", "gpus")} for group in config["instance_group"]]
    return {"backend": config.get("backend") or PLATFORMS.get(config["platform"], ""), "instances": groups}


def _upgraded(
    rig: Rig, first: Release, second: Release, options: CheckOptions, folder: Path, row: dict[str, Any]
) -> None:
    """Answers before and after are the truth that those under load are held against."""
    plan = TrafficPlan(rig.server.grpc_url, rig.server.http_url, **options.traffic)
    truth = {first.number: _answers(rig, plan)}
    with Traffic(plan, folder / "upgrade.jsonl") as traffic:
        traffic.wait_for(options.answers)
        said = rig.driver("upgrade", str(second.number), *options.upgrade).finish()
        traffic.wait_for(len(traffic.so_far()) + options.answers)
        outcome = traffic.stop()
    row["live"] = rig.live()
    if said or row["live"] != second.number:
        raise RuntimeError(said or f"release {row['live']} answers; expected release {second.number}")
    truth[second.number] = _answers(rig, plan)
    verdict = verdict_on(outcome, truth, separation(truth) / 3)
    row |= asdict(verdict)
    failed = verdict.errors - verdict.turned_away  # those were never taken on, and clients ask again by themselves
    if failed or verdict.lost or verdict.mixed or verdict.mislabelled:
        raise RuntimeError(
            f"of {verdict.answers} answers {verdict.mixed} were made by two releases and {verdict.mislabelled} bear "
            f"another's name; {failed} requests failed, {verdict.lost} were lost: {'; '.join(verdict.first_errors)}"
        )


def _answers(rig: Rig, plan: TrafficPlan) -> list[tuple[float, ...]]:
    """To each request of the traffic, asked alone."""
    with EmotionClient(rig.server.grpc_url) as client:
        return [tuple(client.predict(**item).probabilities.values()) for item in traffic_items(plan)]


def exported(options: CheckOptions, state: Path) -> Build:
    """Builds by `cmt export`, in a process of its own: a crash of a compiler is then a step that failed."""

    def build(precision: str, seed: int) -> Release:
        command = [sys.executable, "-m", "cmt_cli.main", "export", "--state", str(state), "--random-weights"]
        command += ["--preset", options.preset, "--engine", options.engine]
        command += ["--precision", precision, "--seed", str(seed)]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=EXPORT_TIMEOUT_S)
        number = re.search(r"^release (\d+) \(", ran.stdout, re.MULTILINE)
        if ran.returncode or number is None:
            raise RuntimeError(f"`cmt export` ended with {ran.returncode}: {(ran.stdout + ran.stderr)[-LAST_WORDS:]}")
        return open_release(state / "releases", int(number[1]))

    return build


def main(
    preset: Annotated[str, typer.Option(help="Encoders and sizes, with random weights; mini where it is dry.")] = "",
    dry: Annotated[bool, typer.Option("--dry", help="The same steps on the CPU, with OpenVINO.")] = False,
    state: Annotated[Path, typer.Option(help="Folder of the releases that are built.")] = Path(".cmt/gpu"),
    out: Annotated[Path, typer.Option(help="The file to send back.")] = Path("gpu-check.json"),
) -> None:
    """Checks on this machine's GPU all that only a GPU can show. Exits with 1 if anything failed."""
    usual = DRY if dry else CheckOptions()
    options = replace(usual, preset=preset or usual.preset)
    report = Report(out, options)
    check(options, state, exported(options, state), report)
    print(f"{'all passed' if report.passed else 'something failed'}; please send back {out.absolute()}")
    raise typer.Exit(0 if report.passed else 1)


if __name__ == "__main__":
    typer.run(main)
