"""What keeps pods from getting ready, in words, and how far a Deployment has come."""

from __future__ import annotations

from typing import Any

import pytest

from cmt_rollout.kubernetes.layout import ClusterOptions
from cmt_rollout.kubernetes.pods import Pod, Progress, _Faults
from emulated_api.kubelet import Fault, status_of


def pod(status: dict[str, Any], name: str = "a") -> Pod:
    return Pod.of({"metadata": {"name": name, "uid": name, "labels": {"cmt/release": "2"}}, "status": status})


def waiting(reason: str, **more: Any) -> dict[str, Any]:
    return {"containerStatuses": [{"name": "triton", "image": "x:1", "state": {"waiting": {"reason": reason}}, **more}]}


def failing(fault: Fault, policy: str = "FallbackToLogsOnError") -> dict[str, Any]:
    """The status of a pod with the containers of ours. policy: for what they said when they ended."""
    spec = {
        f"{kind}s": [{"name": name, "image": "no-such-image:1", "terminationMessagePolicy": policy}]
        for kind, name in (("initContainer", "pull-release"), ("container", "triton"))
    }
    return status_of(fault, spec, "10.0.0.1")


ENDED = {"terminated": {"exitCode": 3, "reason": "Error", "message": "no such release\n"}}


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (failing("image"), "container triton: its image no-such-image:1 can't be pulled (ImagePullBackOff: Back-off"),
        (
            failing("crash"),
            "container triton: it ends as often as it is started (CrashLoopBackOff; last with exit",
        ),
        (
            failing("init"),
            "init container pull-release: it ends as often as it is started (CrashLoopBackOff; last",
        ),
        (failing("evicted"), "it has failed (Evicted: The node was low on resource: ephemeral-storage."),
        (failing("gated"), "it may not be scheduled yet (not yet)"),
        (failing("unschedulable"), "no node has room for it (0/3 nodes are available: 3 Insufficient cpu.)"),
        (waiting("ErrImageNeverPull"), "container triton: its image x:1 isn't on the node and may not be pulled"),
        (waiting("CreateContainerConfigError"), "container triton: its configuration is incomplete"),
        (
            {"initContainerStatuses": [{"name": "pull-release", "state": ENDED}]},
            "init container pull-release: it fails; last with exit code 3, Error: no such release",
        ),
        (
            {"containerStatuses": [{"name": "triton", "state": {}, "lastState": ENDED, "restartCount": 3}]},
            "container triton: it fails; last with exit code 3, Error: no such release",
        ),
    ],
)
def test_faults_are_said_in_words(status: dict[str, Any], said: str) -> None:
    assert pod(status).fault.startswith(said)


@pytest.mark.parametrize(
    "status",
    [
        {},
        failing("never_ready"),
        waiting("ContainerCreating"),
        waiting("PodInitializing"),
        {"phase": "Succeeded"},
        {"containerStatuses": [{"name": "triton", "state": {}, "lastState": ENDED, "restartCount": 1}]},
        {"containerStatuses": [{"name": "triton", "state": {}, "lastState": ENDED, "restartCount": 9, "ready": True}]},
        {"initContainerStatuses": [{"name": "pull-release", "state": {"terminated": {"exitCode": 0}}}]},
    ],
)
def test_what_takes_its_time_is_no_fault(status: dict[str, Any]) -> None:
    assert pod(status).fault == ""


def test_a_fault_must_last_before_it_counts() -> None:
    faults, patient, crashed = _Faults(grace_s=0.0), _Faults(grace_s=60.0), pod(failing("crash"))
    faults.look([crashed])
    assert faults.lasting == f"pod a: {crashed.fault}"
    faults.look([pod(failing("unschedulable"))])
    assert (faults.lasting, faults.messages) == ("", [f"pod a: {pod(failing('unschedulable')).fault}"])
    patient.look([crashed], "a quota")
    assert (patient.lasting, patient.messages) == ("", ["a quota", f"pod a: {crashed.fault}"])
    faults.look([], "a quota")
    assert faults.lasting == "a quota"


def test_pods_that_fail_again_and_again_count_but_not_those_from_before() -> None:
    """An evicted pod has been replaced and stays to be seen; three of them since are no accident."""
    faults = _Faults(grace_s=0.0)
    evicted = [pod(failing("evicted"), name) for name in "abcdef"]
    faults.look(evicted[:3])
    assert (faults.lasting, faults.messages) == ("", [])
    faults.look(evicted[:5])
    assert faults.lasting == ""
    faults.look(evicted)
    assert faults.lasting.startswith("3 pods have failed, such as pod f: it has failed (Evicted: The node was low on")


def test_only_where_the_policy_asks_a_container_says_why_it_ended() -> None:
    assert "StoreError: release 3 came; /store holds 1, 2" in pod(failing("init")).fault
    assert "StoreError" not in pod(failing("init", policy="File")).fault


def test_of_a_long_log_the_end_is_said() -> None:
    ended = {"terminated": {"exitCode": 1, "reason": "Error", "message": "\n".join(f"line {n}" for n in range(80))}}
    status = {"containerStatuses": [{"name": "triton", "state": ended}]}
    assert pod(status).fault == "container triton: it fails; last with exit code 1, Error: line 77 line 78 line 79"


@pytest.mark.parametrize(
    ("item", "held"),
    [
        (
            {"spec": {"replicas": 1, "paused": True}},
            "it is paused; `kubectl rollout resume deployment/a -n b`",
        ),
        (
            {"status": {"conditions": [{"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: q"}]}},
            "a pod may not be created: exceeded quota: q",
        ),
        ({"status": {"conditions": [{"type": "ReplicaFailure", "status": "False", "message": "x"}]}}, ""),
    ],
)
def test_what_keeps_pods_from_being_made(item: dict[str, Any], held: str) -> None:
    deployment = {"metadata": {"name": "a", "namespace": "b"}, "spec": {"replicas": 1}, **item}
    assert Progress.of(deployment).held.startswith(held)
    assert bool(Progress.of(deployment).held) == bool(held)


@pytest.mark.parametrize(
    ("status", "rolling", "complete"),
    [
        ({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}, False, True),
        ({"observedGeneration": 1, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}, True, False),
        ({"observedGeneration": 2, "replicas": 3, "updatedReplicas": 1, "availableReplicas": 2}, True, False),
        ({"observedGeneration": 2, "replicas": 3, "updatedReplicas": 2, "availableReplicas": 3}, True, False),
        ({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 1}, False, False),
        ({}, True, False),
    ],
)
def test_a_rollout_is_over_when_every_pod_is_of_the_template_and_available(
    status: dict[str, int], rolling: bool, complete: bool
) -> None:
    progress = Progress.of({"metadata": {"generation": 2}, "spec": {"replicas": 2}, "status": status})
    assert (progress.rolling, progress.complete) == (rolling, complete)


@pytest.mark.parametrize(("share", "replicas", "pods"), [(0, 10, 1), (0.1, 1, 1), (0.1, 11, 2), (1, 3, 3)])
def test_a_share_of_the_replicas_is_rounded_up(share: float, replicas: int, pods: int) -> None:
    assert ClusterOptions(canary_share=share).canaries(replicas) == pods


@pytest.mark.parametrize(("changes", "said"), [({"canary_share": 2}, "share from 0 to 1"), ({"lease_s": 0}, "above 0")])
def test_options_are_checked(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ClusterOptions(**changes)
