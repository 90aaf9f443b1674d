"""`cmt doctor`: output and exit status, on repositories and on the session's own server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cmt_cli.state import RunningServer, State
from cmt_server.doctor.diagnosis import RULES
from cmt_server.server import TritonServer
from tiny_triton import Step, ensemble, python_model, write_model

ROOT = Path(__file__).parents[2]


def doctor(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cmt_cli.main", "doctor", *arguments]
    environment = {**os.environ, "COLUMNS": "100"}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, env=environment)


@pytest.fixture
def ill(tmp_path: Path) -> Path:
    """A repository with one error, of Tritons before 2.69, and one warning."""
    full = "max_batch_size: 1 dynamic_batching { default_queue_policy { max_queue_size: 1 } }"
    sample = 'inputs { key: "x" value { data_type: TYPE_FP32 dims: 1 zero_data: true } }'
    warmup = f'model_warmup {{ name: "w" batch_size: 1 {sample} }}'
    write_model(tmp_path, "a", python_model(more=f"{full} {warmup}"))
    write_model(tmp_path, "b", python_model(more="max_batch_size: 1"))
    steps = [Step("a", {"x": "x"}, {"y": "y"}), Step("b", {"x": "x"}, {"y": "z"})]
    write_model(tmp_path, "e", ensemble(steps, outputs=("y", "z"), more="max_batch_size: 1"))
    return tmp_path


def test_help_has_an_example() -> None:
    assert "cmt doctor" in doctor("--help").stdout.split("Example:")[1]


@pytest.mark.long
def test_our_own_repository_is_clean() -> None:
    for strict in ([], ["--strict"]):
        shown = doctor("model_repository", *strict)
        assert shown.returncode == 0, shown.stdout + shown.stderr
        assert shown.stdout == "errors: 0, warnings: 0, models: 20; by the rules for every Triton version\n"


def test_findings_name_the_file_the_step_and_the_remedy(ill: Path) -> None:
    shown = doctor(str(ill))
    assert shown.returncode == 1
    for part in ("error refusal-beside-sibling", "fix: Refuse before the fan-out", "warning no-warmup", "errors: 1"):
        assert part in shown.stdout
    assert f"{ill}/e/config.pbtxt: e: step 1 (a) runs beside step 2 (b)" in shown.stdout


@pytest.mark.long
def test_errors_decide_the_exit_status_and_warnings_when_strict(ill: Path) -> None:
    assert doctor(str(ill), "--triton-version", "2.51").returncode == 1
    assert doctor(str(ill), "--triton-version", "2.69").returncode == 0
    assert doctor(str(ill), "--triton-version", "2.69", "--strict").returncode == 1


@pytest.mark.long
def test_json_tells_everything(ill: Path) -> None:
    told = json.loads(doctor(str(ill), "--triton-version", "2.51", "--json").stdout)
    assert (told["errors"], told["warnings"], told["models"], told["triton_version"]) == (1, 1, 3, "2.51")
    assert told["findings"][0]["rule"] == "refusal-beside-sibling"
    assert told["findings"][0]["triton_versions"] == "up to 2.68"


@pytest.mark.long
def test_every_rule_is_listed() -> None:
    shown, told = doctor("--rules"), json.loads(doctor("--rules", "--json").stdout)
    assert all(rule.id in shown.stdout for rule in RULES)
    assert [rule["id"] for rule in told] == [rule.id for rule in RULES]


@pytest.mark.long
def test_what_cannot_be_examined_is_said_in_a_line(tmp_path: Path) -> None:
    for arguments, status, says in (
        (["--state", str(tmp_path)], 2, "nothing is served from"),
        ([str(tmp_path / "nowhere")], 1, "expected the folder of a Triton model repository"),
        (["--url", "grpc://127.0.0.1:8001"], 2, "expected Triton's HTTP service"),
        (["--url", "http://127.0.0.1:1"], 1, "doesn't answer"),
        ([str(tmp_path), "--triton-version", "new"], 2, "expected one such as 2.51"),
    ):
        refused = doctor(*arguments)
        assert refused.returncode == status
        assert says in " ".join(refused.stderr.split())
        assert "Traceback" not in refused.stderr


@pytest.mark.long
def test_our_own_server_is_as_clean_as_its_triton(server: TritonServer, tmp_path: Path) -> None:
    """As what this state serves: the repository and the server, with the token that was announced."""
    state = State(tmp_path)
    state.repository.symlink_to(server.options.repository)
    running = RunningServer(
        pid=server.pid or 0,
        http_url=server.http_url,
        grpc_url=server.grpc_url,
        metrics_url=f"http://127.0.0.1:{server.metrics_port}/metrics",
        control_token=server.options.control_token,
    )
    state.announce(running)
    shown = doctor("--state", str(tmp_path))
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "by the rules for Triton 2.51" in shown.stdout
    told = json.loads(doctor("--state", str(tmp_path), "--json").stdout)
    # its Triton has published vulnerabilities, and nothing of it is for others
    assert {(one["rule"], one["severity"]) for one in told["findings"]} == {("published-vulnerabilities", "warning")}

    stranger = doctor("--url", server.http_url)
    assert stranger.returncode == 0, stranger.stdout + stranger.stderr
    assert "only its openness was looked at" in " ".join(stranger.stdout.split())
