"""What keeps pods from getting ready, in words, and how far a Deployment has come."""

from __future__ import annotations

from typing import Any

import pytest

from cmt_rollout.kubernetes.layout import ClusterOptions
from cmt_rollout.kubernetes.pods import Pod, Progress, _Faults
from emulated_api.controllers import FAULTY


def pod(status: dict[str, Any], name: str = "a") -> Pod:
    return Pod.of({"metadata": {"name": name, "uid": name, "labels": {"cmt/release": "2"}}, "status": status})


def waiting(reason: str, **more: Any) -> dict[str, Any]:
    return {"containerStatuses": [{"name": "triton", "image": "x:1", "state": {"waiting": {"reason": reason}}, **more}]}


ENDED = {"terminated": {"exitCode": 3, "reason": "Error", "message": "no such release\n"}}


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (FAULTY["image"], "container triton: its image no-such-image can't be pulled (ImagePullBackOff: Back-off"),
        (FAULTY["crash"], "container triton: it ends as often as it is started (CrashLoopBackOff; last with exit code"),
        (FAULTY["init"], "init container pull-release: it ends as often as it is started (CrashLoopBackOff; last with"),
        (FAULTY["unschedulable"], "no node has room for it (0/3 nodes are available: 3 Insufficient cpu.)"),
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
        FAULTY["never_ready"],
        waiting("ContainerCreating"),
        waiting("PodInitializing"),
        {"phase": "Failed", **FAULTY["crash"]},  # its ReplicaSet has put another in its place
        {"containerStatuses": [{"name": "triton", "state": {}, "lastState": ENDED, "restartCount": 1}]},
        {"containerStatuses": [{"name": "triton", "state": {}, "lastState": ENDED, "restartCount": 9, "ready": True}]},
        {"initContainerStatuses": [{"name": "pull-release", "state": {"terminated": {"exitCode": 0}}}]},
    ],
)
def test_what_takes_its_time_is_no_fault(status: dict[str, Any]) -> None:
    assert pod(status).fault == ""


def test_a_fault_must_last_before_it_counts() -> None:
    faults = _Faults(grace_s=0.0)
    assert faults.lasting([pod(FAULTY["crash"])]) == f"pod a: {pod(FAULTY['crash']).fault}"
    assert faults.lasting([pod(FAULTY["unschedulable"])]) == ""  # a node may be on its way
    patient = _Faults(grace_s=60.0)
    assert patient.lasting([pod(FAULTY["crash"])]) == ""


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
