"""The verbs of `cmt`: help, output, exit status."""

from __future__ import annotations

import io
import json
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
from rich.console import Console

from cmt_cli.bench import bench_table
from cmt_cli.export import sample
from cmt_cli.serve import limits_from
from cmt_cli.show import emotion_table
from cmt_cli.state import State
from cmt_client import EmotionClient, FakeTransport
from cmt_engine.engine import Precision
from cmt_pipeline.pipelines import PIPELINES
from cmt_pipeline.stages import STAGES
from cmt_release.release import Release
from cmt_server.server import TritonServer
from small_media import write_video


def cmt(*arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cmt_cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)


@pytest.mark.long
def test_predict_prints_json(server: TritonServer) -> None:
    files = ["--image", str(sample("image")), "--audio", str(sample("audio"))]
    answered = cmt("predict", *files, "--text", "Well done!", "--url", server.http_url, "--json")
    assert answered.returncode == 0, answered.stderr
    emotion = json.loads(answered.stdout)
    assert emotion["modalities"] == ["image", "audio", "text"]
    assert emotion["label_set"] == "meld"
    assert emotion["trained"] is True


@pytest.mark.long
def test_predict_answers_for_a_film(server: TritonServer, tmp_path: Path) -> None:
    film = str(write_video(tmp_path / "film.mp4", 3.0))
    told = json.loads(cmt("predict", "--video", film, "--window-s", "2", "--url", server.grpc_url, "--json").stdout)
    assert [window["start_s"] for window in told["windows"]] == [0, pytest.approx(1.5, abs=0.05)]
    assert cmt("predict", "--video", film, "--audio", film, "--url", server.grpc_url).returncode == 2


def test_predict_prints_a_table(server: TritonServer) -> None:
    answered = cmt("predict", "--text", "Well done!", "--url", server.grpc_url)
    assert answered.returncode == 0, answered.stderr
    for part in ("probabilities", "valence", "text (attention 1.00)", "meld"):
        assert part in answered.stdout
    assert "untrained" not in answered.stdout


def test_a_bench_fits_a_terminal() -> None:
    result = json.loads((Path(__file__).parents[2] / "perf/results/bench.json").read_text())
    console = Console(file=io.StringIO(), width=80)
    console.print(bench_table(result))
    shown = cast(io.StringIO, console.file).getvalue()
    for name, figures in result["single_stream"].items():
        assert name.split()[0] in shown
        assert f"{figures['p50_ms']:.1f}" in shown
    for ratio in result["ratios"].values():
        assert f"{ratio['ratio']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]" in shown


@pytest.mark.long
def test_a_bench_is_of_a_release_or_of_a_precision(tmp_path: Path) -> None:
    refused = cmt("bench", "1", "--precision", "int8", "--state", str(tmp_path))
    assert refused.returncode != 0
    assert "expected one of them" in refused.stderr
    none = cmt("bench", "--precision", "int8", "--state", str(tmp_path))
    assert none.returncode != 0
    assert "holds no release in int8" in " ".join(none.stderr.split())


def test_a_table_says_untrained() -> None:
    with EmotionClient("grpc://nowhere:1", transport=FakeTransport()) as client:
        emotion = client.predict(text="Well done!")
    console = Console(file=io.StringIO(), width=100)
    console.print(emotion_table(emotion))
    assert not emotion.trained
    assert "untrained" in cast(io.StringIO, console.file).getvalue()


@pytest.mark.long
def test_bad_input_exits_with_2(server: TritonServer, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(sample("image").read_bytes()[:2000])
    refused = cmt("predict", "--image", str(broken), "--url", server.grpc_url)
    assert refused.returncode == 2
    assert "image: got a damaged JPEG file" in " ".join(refused.stderr.split())
    assert "Traceback" not in refused.stderr
    assert cmt("predict", "--url", server.grpc_url).returncode == 2
    assert cmt("predict", "--audio", str(tmp_path / "none.wav"), "--url", server.grpc_url).returncode == 2


@pytest.mark.long
def test_no_server_exits_with_1() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"grpc://127.0.0.1:{closed.getsockname()[1]}"
        for verb in (["predict", "--text", "hello"], ["status"]):
            refused = cmt(*verb, "--url", url)
            assert refused.returncode == 1
            assert "ServerUnavailable" in refused.stderr
            assert "Traceback" not in refused.stderr


@pytest.mark.long
def test_status_shows_pipelines_and_stages(server: TritonServer) -> None:
    shown = cmt("status", "--url", server.grpc_url)
    assert shown.returncode == 0, shown.stderr
    for name in (*PIPELINES, *STAGES):
        assert name in shown.stdout
    found = json.loads(cmt("status", "--url", server.http_url, "--json").stdout)
    assert all(pipeline["ready"] for pipeline in found["pipelines"])


def test_export_refuses_what_it_doesnt_know() -> None:
    refused = cmt("export", "--precision", "fp64")
    assert refused.returncode == 2
    assert "openvino takes fp32, bf16, int8" in " ".join(refused.stderr.split())


@pytest.mark.long
def test_serve_without_a_release_says_how_to_make_one(tmp_path: Path) -> None:
    refused = cmt("serve", "--state", str(tmp_path))
    assert refused.returncode == 1
    assert "cmt export" in refused.stderr


@pytest.mark.triton
def test_demo_is_right_alone_and_together_and_shows_times(
    release_of: Callable[[Precision], Release], state: State
) -> None:
    release = release_of("fp32")
    shown = cmt("demo", "--state", str(state.root), timeout_s=240)
    assert shown.returncode == 0, shown.stderr
    assert f"release {release.number} " in shown.stdout  # reused, not built again
    for part in ("is up to date", "meld", "valence", *STAGES, "end to end", "server stopped"):
        assert part in shown.stdout or part == "check"
    meant = sample("label").read_text().strip()
    for asked in ("image", "audio", "text", "image, audio, text"):
        assert re.search(rf"│ {asked} +│ {meant} +│", shown.stdout), asked
    assert not state.server_file.exists() or state.running() is not None


def test_limits_are_named_and_typed() -> None:
    assert limits_from(["max_audio_s=8", "max_text_tokens=64"]).max_text_tokens == 64
    with pytest.raises(ValueError, match="NAME=VALUE"):
        limits_from(["max_smell=3"])
    with pytest.raises(ValueError, match="max_text_tokens=many"):
        limits_from(["max_text_tokens=many"])
