"""Whatever ends a driver, the release on trial leaves the traffic; and what people do by hand beside it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from cmt_cli.upgrade import reporting
from cmt_release.release import Release
from cmt_rollout import rollout
from cmt_rollout.errors import Ended, RollbackFailed, StepFailed
from cmt_rollout.kubernetes.layout import CANARY, LEASE, STABLE, TRAFFIC
from cmt_rollout.kubernetes.lease import Lease
from cmt_rollout.options import Event
from k8s_place import QUICK, REPLICAS, TIMING, Place, manifests, wait_until

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


@pytest.fixture
def not_ignored() -> Iterator[None]:
    """SIGHUP as a terminal's command has it, however these tests were started."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def expect_no_trial(place: Place) -> None:
    assert place.deployment(CANARY)["spec"]["replicas"] == 0
    on_trial = {"cmt/track": "canary", TRAFFIC: "yes"}
    wait_until(lambda: not place.pods(**on_trial))


@pytest.mark.long
@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), SystemExit(1)], ids=["pipe", "rich"])
@pytest.mark.parametrize("step", ["canary", "flip", "watch"])
def test_a_report_that_nobody_reads_ends_it_and_leads_back(
    deployed: Place, releases: list[Release], step: str, error: BaseException
) -> None:
    def report(event: Event) -> None:
        if gone or event.step == step:
            gone.append(True)
            raise error

    gone: list[bool] = []
    with pytest.raises(Ended, match="its reader is gone"):
        rollout.upgrade([deployed.target()], releases[1], QUICK, report)
    deployed.settled(1)
    assert len(gone) == 1  # the way back needs no listener


def test_a_reader_that_leaves_on_the_way_back_doesnt_keep_anything_there(
    deployed: Place, releases: list[Release]
) -> None:
    def report(event: Event) -> None:
        if event.step == "rollback":
            raise BrokenPipeError(32, "Broken pipe")

    deployed.connector.wrong = lambda pod: pod.release == "2"
    with pytest.raises(StepFailed, match="golden"):
        rollout.upgrade([deployed.target()], releases[1], QUICK, report)
    deployed.settled(1)


@pytest.mark.long
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("step", ["canary", "watch"])
def test_a_signal_leads_back_before_it_ends_the_command(
    deployed: Place, releases: list[Release], number: signal.Signals, step: str, not_ignored: None
) -> None:
    with pytest.raises(Ended, match="a signal ended it"), reporting(True):
        deployed.upgrade(releases[1], at={step: lambda: os.kill(os.getpid(), number)})
    deployed.settled(1)


def test_a_command_whose_reader_is_gone_says_so() -> None:
    """On standard error, and not twice: the interpreter would complain of its buffer once more."""
    program = """
import sys
from cmt_cli.show import fail
from cmt_cli.upgrade import reporting
from cmt_rollout.errors import Ended
from cmt_rollout.options import Event, Following
sys.stdin.read()
try:
    with reporting(True) as shown:
        Following(shown)(Event("canary", "cmt", "started"))
except Ended as error:
    sys.exit(fail(error))
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program], text=True, **pipes) as process:  # type: ignore[call-overload]
        process.stdout.close()
        process.stdin.close()
        said = process.stderr.read()
    assert process.returncode == 1
    assert said.split() == [
        "Ended:",
        "the",
        "report",
        "can't",
        "be",
        "written",
        "any",
        "more:",
        "its",
        "reader",
        "is",
        "gone",
    ]


def test_a_conflict_on_the_way_back_doesnt_keep_the_canary(deployed: Place, releases: list[Release]) -> None:
    """Somebody sets the variable by hand during the canary: the flip, and the flip back, are refused."""
    edit = ("set", "env", f"deployment/{STABLE}", "CMT_RELEASE=3")
    with pytest.raises(RollbackFailed, match=r"flip on .*kubectl-set sets .*; and rolling back failed"):
        deployed.upgrade(releases[1], at={"flip": lambda: deployed.kubectl(*edit)})
    expect_no_trial(deployed)


@pytest.mark.long
def test_an_edit_of_the_canary_is_no_trial_and_doesnt_keep_it(deployed: Place, releases: list[Release]) -> None:
    """It is there for upgrades alone: they take it over."""
    edit = ("set", "env", f"deployment/{CANARY}", "CMT_RELEASE=3")
    with pytest.raises(StepFailed, match=rf"canary on .* runs release 3: somebody changed {CANARY} by hand"):
        deployed.upgrade(releases[1], at={"canary": lambda: deployed.kubectl(*edit)})
    expect_no_trial(deployed)
    deployed.upgrade(releases[1])
    deployed.settled(2)


@pytest.mark.long
def test_a_variable_that_was_set_by_hand_is_named_and_an_upgrade_by_force_settles_it(
    deployed: Place, releases: list[Release]
) -> None:
    deployed.upgrade(releases[1])
    deployed.kubectl("set", "env", f"deployment/{STABLE}", "CMT_RELEASE=1")
    deployed.target()
    wait_until(lambda: {pod.release for pod in deployed.pods()} == {"1"} and len(deployed.pods()) == REPLICAS)
    said = r"triton serves 1, .*the label says 2: somebody changed CMT_RELEASE .*kubectl-set sets .*--force-conflicts"
    with pytest.raises(StepFailed, match=rf"preflight on .*{said}"):
        deployed.upgrade(releases[2])
    with pytest.raises(StepFailed, match="there is no one release before"):
        deployed.rollback()  # from 1 to 1
    deployed.upgrade(releases[2], timing=replace(TIMING, force_conflicts=True))
    deployed.settled(3)
    assert "triton serves 1" in deployed.said("recover")


@pytest.mark.long
def test_a_release_set_by_hand_that_doesnt_start_is_left_for_the_one_that_runs(
    played: Place, releases: list[Release]
) -> None:
    """Not for the one before that, which the annotation names."""
    assert played.kubelet
    played.upgrade(releases[1])
    played.kubelet.faults["9"] = "init"
    played.kubectl("set", "env", f"deployment/{STABLE}", "CMT_RELEASE=9")
    played.upgrade(releases[2], timing=replace(TIMING, force_conflicts=True))
    assert "back to release 2, for release 9 was stuck" in played.said("recover")
    played.settled(3)


@pytest.mark.long
def test_after_kubectl_apply_an_upgrade_says_what_to_use(place: Place, releases: list[Release], tmp_path: Path) -> None:
    rendered = tmp_path / "all.yaml"
    rendered.write_text(yaml.safe_dump_all(manifests(place.namespace)))
    place.kubectl("apply", "--validate=false", "-f", str(rendered))
    wait_until(lambda: sum(pod.ready for pod in place.pods()) == REPLICAS)
    with pytest.raises(StepFailed, match=r"kubectl-client-side-apply sets .*use `cmt deploy` from now on"):
        place.upgrade(releases[1])
    place.upgrade(releases[1], timing=replace(TIMING, force_conflicts=True))
    place.settled(2)
    place.upgrade(releases[2])
    place.settled(3)


def test_a_driver_that_waits_for_a_killed_one_says_so(deployed: Place) -> None:
    killed, said = Lease(deployed.cluster, 1), list[str]()
    killed._take()
    path = deployed.cluster.path("leases", LEASE, "coordination.k8s.io/v1")
    lease = deployed.cluster.request("GET", path)
    lease["spec"]["renewTime"] = "2020-01-01T00:00:00.000000Z"
    deployed.cluster.request("PUT", path, lease)
    with deployed.target(say=said.append).lock():
        pass
    assert said == [f"waiting 0.5 s: {killed._holder}, whose lease has run out, may still be at work"]
