"""`make bench-gpu` on the CPU: what travels, the environments, and every section on a real Triton."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import zipfile
from functools import partial
from pathlib import Path

import pytest

from cmt_cli.state import State
from cmt_perf.gpu import pack, served
from cmt_perf.gpu.environments import make
from cmt_perf.gpu.page import write_page
from cmt_perf.gpu.run import PAGE, RESULT, Bench, Scale
from cmt_release.release import Release

SMALL = Scale("tiny", "openvino", "cpu", ("fp32",), (1,), (1, 2), 10, (1,))


@pytest.mark.slow
@pytest.mark.triton
def test_every_section_on_a_real_triton(
    tinies: tuple[Release, Release], tiny_state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "SINGLE", 5)
    monkeypatch.setattr(served, "WARM_UP", 1)
    monkeypatch.setattr(served, "TEXT_TOKENS", 6)  # the tiny tokenizer takes most words letter by letter
    bench = Bench(SMALL, tiny_state.root, tmp_path, Path(sys.executable), 600.0)
    bench.section("conditions", bench._conditions)
    bench.section("parity", bench._parity)
    bench.section("stages", bench._stages)
    bench.section("served_1", partial(bench._served, 1))
    bench.section("broken", partial(bench._served, "many"))
    result = json.loads((tmp_path / RESULT).read_text())
    assert "failed" in result["broken"]
    one = result["served_1"]
    assert "failed" not in one, one
    assert set(one["subsets"]) == {"+".join(golden.modalities) for golden in tinies[1].manifest.golden}
    assert max(one["subsets"].values()) < 1e-3
    assert one["single_stream"]["files"]["requests"] == 5
    assert one["single_stream"]["stage_ms"]["encode_audio"] > 0
    assert [point["concurrency"] for point in one["load"]] == [1, 2]
    assert {row["stage"] for row in result["stages"]["rows"]} == {"encode_image", "encode_audio", "encode_text", "fuse"}
    assert all(row["served_ms"] > 0 and row["gflop"] > 0 for row in result["stages"]["rows"][:3])
    assert "encode_audio" in (tmp_path / PAGE).read_text()


def test_over_time_a_section_is_skipped(tmp_path: Path) -> None:
    bench = Bench(SMALL, tmp_path, tmp_path, Path(sys.executable), -1.0)
    bench.section("stages", lambda: pytest.fail("it was run"))
    assert json.loads((tmp_path / RESULT).read_text())["stages"] == {"skipped": "the time was over"}
    assert "the time was over" in (tmp_path / PAGE).read_text()


def test_the_page_says_what_share_of_the_peak_is_reached() -> None:
    row = {"stage": "encode_text", "batch": 1, "gflop": 10.0, "served_ms": 1.0}
    assert "20.0%" in write_page({"peaks": {"bf16_tflops": 50.0}, "stages": {"rows": [row]}})


def test_what_isnt_needed_stays_behind(tmp_path: Path) -> None:
    wheel = tmp_path / "one.whl"
    stubs = "pytriton/tritonserver/python_backend_stubs"
    kept = ["pytriton/tritonserver/bin/tritonserver", f"{stubs}/3.12/triton_python_backend_stub", "numpy/core/a.so"]
    left = [f"{stubs}/3.8/stub", f"{stubs}/3.11/stub", f"{stubs}/3.13/stub", "numpy/core/tests/t.py", "a/b.pyi"]
    with zipfile.ZipFile(wheel, "w") as files:
        for name in kept + left:
            files.writestr(name, "x")
    with tarfile.open(tmp_path / "site.tar.xz", "w:xz") as archive:
        assert pack._add(archive, "common", wheel) == len(kept)
    with tarfile.open(tmp_path / "site.tar.xz") as archive:
        assert archive.getnames() == [f"common/{name}" for name in kept]


@pytest.mark.long
def test_two_environments_one_with_its_own_numpy(tmp_path: Path) -> None:
    """The one that serves has the archive's NumPy, the other the machine's; both have the rooms and what it carried."""
    for place in ("serve/numpy", "common/carried"):
        (tmp_path / "site" / place).mkdir(parents=True)
        (tmp_path / "site" / place / "__init__.py").write_text("__version__ = 'carried'\n")
    with tarfile.open(tmp_path / "site.tar.xz", "w:xz") as archive:
        archive.add(tmp_path / "site", ".")
    make(tmp_path / "site.tar.xz", tmp_path / "made")
    asked = "import carried, cmt_pipeline, pytest, numpy; print(numpy.__version__)"
    said = {}
    for name in ("build", "serve"):
        command = [str(tmp_path / "made" / name / "bin" / "python"), "-c", asked]
        said[name] = subprocess.run(command, capture_output=True, text=True, check=True, env={}).stdout.strip()
    assert said["serve"] == "carried"
    assert said["build"] != "carried"
