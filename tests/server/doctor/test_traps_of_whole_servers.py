"""Traps that end a server or keep it from loading, and what the doctor sees of one that is open: each on its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from cmt_server.doctor.diagnosis import diagnose
from cmt_server.doctor.running import RunningTriton
from doctor_traps import BATCH, EXPLICIT, X, Y, at_once, in_a_batch, named, queue
from tiny_triton import Step, TinyServer, ensemble, python_model, write_model

pytestmark = pytest.mark.triton

FAN = (Step("refusing", X, Y), Step("slow", X, {"y": "z"}))


def died_at_start(repository: Path, work: Path, *flags: str) -> int:
    """The exit status of a tritonserver that doesn't outlive its start: negative, the signal."""
    server = TinyServer(repository, work, flags)
    with pytest.raises(AssertionError), server:
        pass
    return int(server.process.returncode)


def test_an_ensemble_above_a_circle_ends_the_server(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    for name, inner in (("above", "first"), ("first", "second"), ("second", "first")):
        write_model(repository, name, ensemble([Step(inner, X, Y)]))
    told = {one.model: one.what for one in diagnose([repository]).findings if one.rule.id == "circular-ensembles"}
    assert {name: "the server dies" in what for name, what in told.items()} == {
        "above": True,
        "first": False,
        "second": False,
    }
    assert died_at_start(repository, tmp_path / "server") < 0


def test_a_version_folder_of_many_digits_ends_the_server(tmp_path: Path) -> None:
    write_model(tmp_path / "repository", "dated", python_model(), ()).joinpath("20261126" * 3).mkdir()
    assert ("misread-version-folder", "dated") in named(diagnose([tmp_path / "repository"]))
    assert died_at_start(tmp_path / "repository", tmp_path / "server") < 0


@pytest.mark.long
def test_the_load_of_a_version_without_a_model_never_ends(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    folder = write_model(repository, "hollow", python_model())
    (folder / "1" / "model.py").unlink()
    assert ("empty-version", "hollow") in named(diagnose([repository]))
    with TinyServer(repository, tmp_path / "server", EXPLICIT[:1]) as server:
        with pytest.raises(OSError, match="timed out"):
            server.ask("/v2/repository/models/hollow/load", {}, timeout_s=3)
        assert "Python model file not found" in server.log.read_text()
        assert [entry["state"] for entry in server.index()] == ["LOADING"]
        server.process.kill()  # it doesn't stop while it loads


@pytest.mark.parametrize("folder", ["notes", ".git"])
def test_a_folder_that_is_no_model_ends_the_server(folder: str, tmp_path: Path) -> None:
    (tmp_path / "repository" / folder).mkdir(parents=True)
    assert named(diagnose([tmp_path / "repository"])) == {("not-a-model", folder)}
    assert died_at_start(tmp_path / "repository", tmp_path / "server", "--exit-on-error=true") == 1


def fan_out(repository: Path, policy: str) -> None:
    write_model(repository, "refusing", python_model(more=queue(policy), sleep_ms=100))
    write_model(repository, "slow", python_model(more=BATCH, sleep_ms=300))
    write_model(repository, "fan", ensemble(FAN, outputs=("y", "z"), more="max_batch_size: 1"))


@pytest.mark.long
def test_a_full_queue_beside_a_sibling_crashes_the_server(tmp_path: Path) -> None:
    fan_out(tmp_path / "repository", "max_queue_size: 1")
    assert ("refusal-beside-sibling", "fan") in named(diagnose([tmp_path / "repository"]))
    with TinyServer(tmp_path / "repository", tmp_path / "server", EXPLICIT) as server:
        statuses = [status for status, _ in at_once(server, "fan", [in_a_batch()] * 12, timeout_s=10)]
        assert 0 in statuses
        assert server.process.wait(10) < 0, "ended by a signal"


@pytest.mark.long
def test_an_open_server_with_a_leaked_request_and_a_failed_version(tmp_path: Path) -> None:
    """A time-out beside a sibling leaks; a version that doesn't load poisons the server's readiness."""
    repository = tmp_path / "repository"
    fan_out(repository, "default_timeout_microseconds: 50000")
    write_model(repository, "broken", python_model(broken=2))
    assert ("refusal-beside-sibling", "fan") in named(diagnose([repository]))
    with TinyServer(repository, tmp_path / "server", EXPLICIT) as server:
        healthy = RunningTriton(server.url).observe()
        ours = {"model-control-open", "shared-memory-open", "failed-version", "readiness-poisoned", "stuck-unloading"}
        assert {rule for rule, _ in named(diagnose([], healthy))} & ours == {"model-control-open", "shared-memory-open"}

        assert 503 in [status for status, _ in at_once(server, "fan", [in_a_batch()] * 6)]
        assert server.unload("fan")[0] == 200
        write_model(repository, "broken", python_model(broken=2), (2,))
        assert server.load("broken")[0] == 400
        assert server.ask("/v2/health/ready")[0] == 400
        assert server.ask("/v2/models/broken/ready")[0] == 200

        diagnosis = diagnose([], RunningTriton(server.url).observe(patience_s=1))
        rules = named(diagnosis)
        assert {rule for rule, _ in rules} & ours == ours
        assert {("stuck-unloading", "fan"), ("failed-version", "broken")} <= rules
        assert any("broken on purpose" in one.what for one in diagnosis.findings)


@pytest.mark.long
def test_a_server_without_model_control_is_not_open_to_it(tmp_path: Path) -> None:
    write_model(tmp_path / "repository", "one", python_model())
    with TinyServer(tmp_path / "repository", tmp_path / "server") as server:
        seen = RunningTriton(server.url).observe()
    assert not seen.control_open
    assert seen.shared_memory_open
