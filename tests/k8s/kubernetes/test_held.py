"""Pods that may not be made: quotas, pod security, webhooks, a paused Deployment. Each is said, and soon."""

from __future__ import annotations

import time

import pytest

from cmt_release.release import Release
from cmt_rollout.errors import ClusterError, StepFailed
from cmt_rollout.kubernetes.cluster import MERGE
from cmt_rollout.kubernetes.layout import CANARY, STABLE
from k8s_place import REPLICAS, TIMING, Place, manifests, wait_until


def merge(place: Place, path: str, patch: dict[str, object]) -> None:
    place.cluster.request("PATCH", path, patch, [("fieldManager", "somebody")], MERGE)


def quota(place: Place, pods: int) -> None:
    item = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "few"},
        "spec": {"hard": {"pods": str(pods)}},
    }
    place.cluster.apply(place.cluster.path("resourcequotas", "few"), item, "somebody")


def test_a_quota_that_leaves_no_room_for_the_canary_is_said(deployed: Place, releases: list[Release]) -> None:
    quota(deployed, REPLICAS)
    start = time.monotonic()
    with pytest.raises(StepFailed, match=r"load on .*a pod may not be created: pods .*: exceeded quota: few"):
        deployed.upgrade(releases[1])
    assert time.monotonic() - start < TIMING.ready_timeout_s
    deployed.settled(1)


def test_a_quota_that_is_met_in_the_flip_leads_back(deployed: Place, releases: list[Release]) -> None:
    """The canary still has its pod; the first new stable one is refused."""
    with pytest.raises(StepFailed, match=r"flip on .*a pod may not be created: .*exceeded quota"):
        deployed.upgrade(releases[1], at={"flip": lambda: quota(deployed, REPLICAS + 1)})
    deployed.settled(1)


def test_a_quota_that_passes_is_sat_out(deployed: Place, releases: list[Release]) -> None:
    """Others' pods may leave within the time that a fault is borne."""
    quota(deployed, REPLICAS)
    path = deployed.cluster.path("resourcequotas", "few")

    def raised(detail: str) -> None:
        if "exceeded quota" in detail:
            deployed.cluster.request("DELETE", path)

    target = deployed.target(say=raised)
    with target.lock():
        target.load(releases[1])
        target.end_trial()


def test_pod_security_that_forbids_the_pods_is_refused_before_anything_changes(place: Place) -> None:
    items = manifests(place.namespace)
    items[0]["metadata"]["labels"] = {
        f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")
    }
    with pytest.raises(
        StepFailed, match=r"preflight on .*Deployment cmt-triton: .*would violate PodSecurity .*runAsNonRoot"
    ):
        place.deploy(items)
    assert place.cluster.find(place.cluster.path("deployments", STABLE, "apps/v1")) is None


def test_pod_security_without_warnings_is_said_by_the_replica_set(place: Place) -> None:
    items = manifests(place.namespace)
    items[0]["metadata"]["labels"] = {"pod-security.kubernetes.io/enforce": "restricted"}
    with pytest.raises(StepFailed, match=r"watch on .*a pod may not be created: .*violates PodSecurity"):
        place.deploy(items)


def test_what_is_only_warned_of_is_said_and_done(place: Place) -> None:
    items = manifests(place.namespace)
    items[0]["metadata"]["labels"] = {"pod-security.kubernetes.io/warn": "restricted"}
    place.deploy(items)
    assert "warned of: Deployment cmt-triton: would violate PodSecurity" in place.said("preflight")
    place.settled(1)


@pytest.mark.long
def test_warnings_are_said_by_an_upgrade_too(deployed: Place, releases: list[Release]) -> None:
    labels = {"metadata": {"labels": {"pod-security.kubernetes.io/warn": "restricted"}}}
    merge(deployed, f"/api/v1/namespaces/{deployed.namespace}", labels)
    deployed.upgrade(releases[1])
    assert any("would violate PodSecurity" in event.detail for event in deployed.events if event.step == "preflight")


@pytest.mark.parametrize("name", [STABLE, CANARY])
def test_a_paused_deployment_is_refused_with_the_command_that_resumes_it(
    deployed: Place, releases: list[Release], name: str
) -> None:
    merge(deployed, deployed.cluster.path("deployments", name, "apps/v1"), {"spec": {"paused": True}})
    said = rf"{name}: it is paused; `kubectl rollout resume deployment/{name} -n {deployed.namespace}`"
    with pytest.raises(StepFailed, match=rf"preflight on .*{said}"):
        deployed.upgrade(releases[1])
    with pytest.raises(StepFailed, match=rf"preflight on .*{said}"):
        deployed.deploy(manifests(deployed.namespace, replicas=3))


@pytest.mark.long
def test_a_deployment_that_is_paused_in_the_middle_is_said(deployed: Place, releases: list[Release]) -> None:
    path = deployed.cluster.path("deployments", STABLE, "apps/v1")
    with pytest.raises(StepFailed, match=r"flip on .*it is paused"):
        deployed.upgrade(releases[1], at={"flip": lambda: merge(deployed, path, {"spec": {"paused": True}})})
    merge(deployed, path, {"spec": {"paused": False}})
    deployed.settled(1)


@pytest.mark.long
def test_a_webhook_that_refuses_pods_is_said(emulated: Place, releases: list[Release]) -> None:
    assert emulated.emulation
    refused = {"Pod": "no pods on Fridays"}
    emulated.emulation.controllers.webhooks["calendar.example"] = lambda item: refused.get(item["kind"], "")
    with pytest.raises(
        StepFailed, match=r'load on .*admission webhook "calendar\.example" denied the request: no pods on Fridays'
    ):
        emulated.upgrade(releases[1])
    emulated.emulation.controllers.webhooks.clear()
    emulated.settled(1)


def test_a_webhook_that_refuses_deployments_is_said_before_anything_changes(
    emulated: Place, releases: list[Release]
) -> None:
    assert emulated.emulation
    emulated.emulation.controllers.webhooks["policy.example"] = lambda item: (
        "not signed" if item["kind"] == "Deployment" else ""
    )
    with pytest.raises(ClusterError, match=r'webhook "policy\.example" denied the request: not signed'):
        emulated.upgrade(releases[1])
    emulated.emulation.controllers.webhooks.clear()
    emulated.settled(1)


@pytest.mark.long
def test_pods_that_were_evicted_for_good_hold_nobody_up(played: Place, releases: list[Release]) -> None:
    """Their objects stay after others have taken their place."""
    assert played.kubelet
    for item in played.cluster.request("GET", played.cluster.path("pods"))["items"]:
        played.kubelet.evict({"apiVersion": "v1", "kind": "Pod", **item})
    wait_until(lambda: sum(pod.ready for pod in played.target()._pods(STABLE)) == REPLICAS)
    played.upgrade(releases[1])
    played.settled(2)
    assert sum(pod.over for pod in played.target()._pods(STABLE)) == REPLICAS
