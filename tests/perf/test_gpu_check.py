"""`make check-gpu`, dry: on a real Triton and the CPU; what fails is in its file, with the reason."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cmt_cli.state import State
from cmt_engine.gpu import find_gpus
from cmt_perf.gpu.check import DRY, CheckOptions, Report, check
from cmt_release.release import Release

ROOT = Path(__file__).parents[2]
STEPS = [
    "machine",
    "build fp32",
    "build the release to upgrade to",
    "serve",
    "who runs the stages",
    "golden requests at every subset",
    "upgrade under load",
]


def result(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    told = json.loads(path.read_text())
    return told, {step["step"]: step for step in told["steps"]}


@pytest.mark.slow
@pytest.mark.triton
def test_a_dry_run_goes_all_the_way(tinies: tuple[Release, Release], tiny_state: State, tmp_path: Path) -> None:
    options = replace(DRY, preset="tiny")
    report = Report(tmp_path / "out.json", options)
    check(options, tiny_state.root, lambda precision, seed: tinies[seed - 1], report)
    told, steps = result(report.path)
    assert told["passed"], [step.get("why") for step in told["steps"]]
    assert list(steps) == STEPS
    assert {row["engine"] for row in steps["build fp32"]["parity"]} == {"onnx", "openvino"}
    assert {config["backend"] for config in steps["who runs the stages"]["stages"].values()} == {"python"}
    upgrade = steps["upgrade under load"]
    assert upgrade["live"] == tinies[1].number
    assert (upgrade["lost"], upgrade["mixed"], upgrade["mislabelled"]) == (0, 0, 0)
    assert upgrade["errors"] == upgrade["turned_away"]
    assert set(upgrade["by_release"]) == {str(release.number) for release in tinies}
    assert steps["machine"]["triton"]


def test_it_helps() -> None:
    command = [sys.executable, "-m", "cmt_perf.gpu.check", "--help"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert said.returncode == 0, said.stderr
    assert all(option in said.stdout for option in ("--preset", "--dry", "--state", "--out"))


@pytest.mark.skipif(bool(find_gpus()), reason="a GPU is here")
def test_without_a_gpu_it_says_so_and_goes_on(tmp_path: Path) -> None:
    def build(precision: str, seed: int) -> Release:
        raise RuntimeError(f"no {precision} here")

    report = Report(tmp_path / "new" / "out.json", CheckOptions())
    check(CheckOptions(), tmp_path, build, report)
    told, steps = result(report.path)
    assert not told["passed"]
    assert "CUDA shows no GPU" in steps["machine"]["why"]
    assert [steps[f"build {precision}"]["why"] for precision in ("fp32", "bf16", "fp16")] == [
        f"RuntimeError: no {precision} here" for precision in ("fp32", "bf16", "fp16")
    ]
    assert "serve" not in steps


@pytest.mark.slow
@pytest.mark.triton
def test_make_check_gpu_dry(tmp_path: Path) -> None:
    command = ["make", "check-gpu", "DRY=1", f"OUT={tmp_path / 'out.json'}"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=800)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    told, steps = result(tmp_path / "out.json")
    assert told["passed"]
    assert list(steps) == STEPS
