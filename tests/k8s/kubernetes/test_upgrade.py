"""Upgrades of a cluster's pods: on a real cluster if one is given, else on the emulated API server."""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import replace
from typing import Any

import pytest

from cmt_release.release import Release
from cmt_rollout.errors import ClusterError, RollbackFailed, StepFailed
from cmt_rollout.kubernetes.cluster import APPLY, Cluster
from cmt_rollout.kubernetes.layout import CANARY, STABLE, TRAFFIC
from cmt_rollout.kubernetes.lease import Lease
from cmt_rollout.options import STEPS
from cmt_server.errors import RepositoryBusy
from emulated_api.kubelet import Fault
from k8s_place import KUBECONFIG, QUICK, REPLICAS, SECOND_SERVER, TIMING, Place, wait_until


@pytest.mark.long
def test_an_upgrade_takes_every_step_and_ends_with_pods_of_the_new_release(
    deployed: Place, releases: list[Release]
) -> None:
    deployed.upgrade(releases[1])
    assert [event.step for event in deployed.events if event.state == "passed"] == list(STEPS)
    deployed.settled(2)
    assert deployed.target().previous() == 1
    assert any("pods available" in e.detail for e in deployed.events if (e.step, e.state) == ("flip", "progress"))


def test_no_pod_takes_traffic_before_it_has_proven_itself(deployed: Place, releases: list[Release]) -> None:
    seen: dict[str, set[str]] = {}

    def look(step: str) -> None:
        seen[step] = {pod.release for pod in deployed.with_traffic()}

    steps = ("golden", "drift", "canary", "flip")
    deployed.upgrade(releases[1], at={step: (lambda step=step: look(step)) for step in steps})  # type: ignore[misc]
    assert seen == {"golden": {"1"}, "drift": {"1"}, "canary": {"1"}, "flip": {"1", "2"}}


def test_a_release_that_answers_wrongly_leads_back(deployed: Place, releases: list[Release]) -> None:
    deployed.connector.wrong = lambda pod: pod.release == "2"
    with pytest.raises(StepFailed, match=r"golden on .*: text: release 102 answered"):
        deployed.upgrade(releases[1])
    deployed.settled(1)
    assert deployed.target().previous() is None


def test_every_pod_on_trial_is_asked_before_it_takes_traffic(deployed: Place, releases: list[Release]) -> None:
    """The second of two is wrong: golden and drift may not meet it often enough."""
    timing = replace(TIMING, canary_share=1.0)
    names: list[str] = []

    def choose() -> None:
        names.extend(sorted(pod.name for pod in deployed.pods(**{"cmt/track": "canary"})))
        deployed.connector.wrong = lambda pod: pod.name == names[1]

    with pytest.raises(StepFailed, match=r"canary on .*: pod .*: text: release 102 answered"):
        deployed.upgrade(releases[1], timing=timing, at={"canary": choose})
    assert len(names) == 2
    deployed.settled(1)


@pytest.mark.long
def test_a_rollback_goes_back_pod_by_pod_and_there_again(deployed: Place, releases: list[Release]) -> None:
    with pytest.raises(StepFailed, match="there is no one release before"):
        deployed.rollback()
    deployed.upgrade(releases[1])
    deployed.rollback()
    deployed.settled(1)
    deployed.rollback()
    deployed.settled(2)


def test_what_is_live_already_isnt_moved(deployed: Place, releases: list[Release]) -> None:
    before = deployed.deployment()["spec"]
    deployed.upgrade(releases[0])
    assert deployed.deployment()["spec"] == before


def set_by_another(cluster: Cluster, release: str, force: bool = True) -> None:
    """As somebody who edits the Deployment by hand."""
    container = {"name": "triton", "env": [{"name": "CMT_RELEASE", "value": release}]}
    item = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": STABLE},
        "spec": {"template": {"spec": {"containers": [container]}}},
    }
    query = [("fieldManager", "somebody-else"), ("force", str(force).lower())]
    cluster.request("PATCH", cluster.path("deployments", STABLE, "apps/v1"), item, query, APPLY)


@pytest.mark.long
def test_fields_that_somebody_else_sets_are_named_and_taken_over_only_by_force(
    deployed: Place, releases: list[Release]
) -> None:
    set_by_another(deployed.cluster, "1")
    with pytest.raises(StepFailed, match=r"preflight on .*: somebody-else sets .*--force-conflicts"):
        deployed.upgrade(releases[1])
    deployed.settled(1)
    deployed.upgrade(releases[1], timing=replace(TIMING, force_conflicts=True))
    deployed.settled(2)


@pytest.mark.long
def test_an_edit_in_the_middle_is_met_at_the_flip(deployed: Place, releases: list[Release]) -> None:
    with pytest.raises((StepFailed, RollbackFailed), match=r"flip on .*: somebody-else sets"):
        deployed.upgrade(releases[1], at={"flip": lambda: set_by_another(deployed.cluster, "1")})
    deployed.settled(1)


@pytest.mark.long
def test_other_edits_in_the_middle_are_left_alone(deployed: Place, releases: list[Release]) -> None:
    def annotate() -> None:
        path = deployed.cluster.path("deployments", STABLE, "apps/v1")
        patch = {"metadata": {"annotations": {"somebody": "was here"}}}
        deployed.cluster.request("PATCH", path, patch, kind="application/merge-patch+json")

    deployed.upgrade(releases[1], at={"load": annotate, "flip": annotate})
    deployed.settled(2)
    assert deployed.deployment()["metadata"]["annotations"]["somebody"] == "was here"


@pytest.mark.long
def test_of_two_drivers_one_is_refused(deployed: Place, releases: list[Release]) -> None:
    def second() -> None:
        with pytest.raises(RepositoryBusy, match="is at work on"):
            deployed.upgrade(releases[2])

    deployed.upgrade(releases[1], at={"golden": second})
    deployed.settled(2)


@pytest.mark.long
def test_a_lease_is_renewed_while_a_driver_works_and_free_after(deployed: Place) -> None:
    first, second = (Lease(deployed.cluster, TIMING.lease_s) for _ in range(2))
    with first.held():
        time.sleep(1.5 * TIMING.lease_s)
        assert first.remaining_s() > 0
        with pytest.raises(RepositoryBusy), second.held():
            pytest.fail("both have it")
    with second.held():
        assert second.remaining_s() > 0


@pytest.mark.long
def test_the_lease_of_a_killed_driver_is_taken_over(
    deployed: Place, releases: list[Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = Lease(deployed.cluster, 1)
    killed._take()
    time.sleep(1.1)
    deployed.upgrade(releases[1])
    deployed.settled(2)
    with pytest.raises(ClusterError, match="lost the lease"):
        killed.remaining_s()


@pytest.mark.long
def test_a_driver_that_slept_over_its_lease_changes_nothing(
    deployed: Place, releases: list[Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its own clock says, and although it looked a moment before it wrote."""
    slept = deployed.target(replace(TIMING, lease_s=1))
    with monkeypatch.context() as patch:
        patch.setattr(Lease, "_renew", lambda *_: None)
        lock = slept.lock()
        lock.__enter__()
    time.sleep(1.1)
    apply, came = deployed.cluster.apply, []

    def another_comes_first(*arguments: Any, **named: Any) -> Any:
        if not came:
            came.append(True)
            deployed.upgrade(releases[1])
        return apply(*arguments, **named)

    monkeypatch.setattr(deployed.cluster, "apply", another_comes_first)
    monkeypatch.setattr(slept._lease, "remaining_s", lambda: 1.0)
    with pytest.raises(ClusterError, match="has taken over cmt-triton"):
        slept.flip(3, 1)
    assert came
    deployed.settled(2)


@pytest.mark.long
def test_what_a_killed_driver_left_on_trial_is_removed(deployed: Place, releases: list[Release]) -> None:
    target = deployed.target()
    with target.lock():
        target.load(releases[2])
        target.share(releases[2], 0.5)
    assert {pod.release for pod in deployed.with_traffic()} == {"1", "3"}
    deployed.upgrade(releases[1])
    assert "pods of release 3 on trial removed" in deployed.said("recover")
    deployed.settled(2)


@pytest.mark.long
def test_a_rolling_update_that_a_killed_driver_left_is_finished(deployed: Place, releases: list[Release]) -> None:
    if deployed.kubelet:
        deployed.kubelet.ready_s = 0.5
    target = deployed.target()
    with target.lock():
        target._apply(STABLE, 2, previous=1)
    deployed.upgrade(releases[1])
    assert "release 2, whose pods were being rolled out, is live" in deployed.said("recover")
    deployed.settled(2)
    assert deployed.target().previous() == 1


def evicted(place: Place, name: str) -> None:
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": place.namespace}}
    place.cluster.request("POST", place.cluster.path("pods", name, subresource="eviction"), body)


@pytest.mark.long
def test_draining_nodes_waits_for_the_disruption_budget(deployed: Place) -> None:
    """The second eviction is refused with 429 until another pod stands in for the first."""
    first, second = deployed.pods()
    evicted(deployed, first.name)
    evicted(deployed, second.name)  # asked again after Retry-After
    wait_until(lambda: sum(pod.ready for pod in deployed.pods()) == REPLICAS)
    assert not {first.name, second.name} & {pod.name for pod in deployed.pods()}


@pytest.mark.long
def test_a_pod_on_trial_that_is_evicted_doesnt_end_the_upgrade(deployed: Place, releases: list[Release]) -> None:
    def evict() -> None:
        for pod in deployed.pods(**{"cmt/track": "canary"}):
            evicted(deployed, pod.name)
        wait_until(lambda: any(pod.ready for pod in deployed.pods(**{"cmt/track": "canary"})))

    deployed.upgrade(releases[1], at={"drift": evict})
    deployed.settled(2)


def test_a_release_that_the_store_hasnt_or_has_otherwise_is_refused(deployed: Place, releases: list[Release]) -> None:
    target = deployed.target()
    target._in_store = lambda number: releases[0].manifest
    with target.lock():
        assert "the store's release 2 is another one" in target.preflight(releases[1])[0]


def test_a_canary_that_would_take_traffic_unproven_is_refused(deployed: Place, releases: list[Release]) -> None:
    path = deployed.cluster.path("deployments", CANARY, "apps/v1")
    patch = {"spec": {"template": {"metadata": {"labels": {TRAFFIC: "yes"}}}}}
    deployed.cluster.request("PATCH", path, patch, kind="application/merge-patch+json")
    with pytest.raises(StepFailed, match=r"preflight .* they would take traffic unproven"):
        deployed.upgrade(releases[1])


@pytest.mark.long
def test_an_autoscaler_that_scales_during_the_flip_is_left_to_it(deployed: Place, releases: list[Release]) -> None:
    """It finds its least pods too few: with no metric at hand that is what it goes by."""
    path = deployed.cluster.path("horizontalpodautoscalers", STABLE, "autoscaling/v2")
    scaler: dict[str, Any] = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": STABLE},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": STABLE},
            "minReplicas": REPLICAS,
            "maxReplicas": REPLICAS + 2,
        },
    }
    deployed.cluster.apply(path, scaler, "test")
    scaler["spec"]["minReplicas"] = REPLICAS + 1

    def scale() -> None:
        deployed.cluster.apply(path, scaler, "test")
        wait_until(lambda: deployed.deployment()["spec"]["replicas"] == REPLICAS + 1)

    deployed.upgrade(releases[1], at={"flip": scale})
    assert {pod.release for pod in deployed.with_traffic()} == {"2"}
    assert len(deployed.with_traffic()) == deployed.deployment()["spec"]["replicas"] == REPLICAS + 1


def test_an_upgrade_and_a_rollback_with_the_rights_of_the_role(deployed: Place, releases: list[Release]) -> None:
    """By the ServiceAccount's own token."""
    driver = deployed.with_rights()
    driver.upgrade(releases[1])
    driver.rollback()
    driver.settled(1)
    with pytest.raises(ClusterError, match="cannot delete resource"):
        driver.cluster.request("DELETE", driver.cluster.path("deployments", STABLE, "apps/v1"))


@pytest.mark.long
def test_two_api_servers_are_as_good_as_one(
    deployed: Place, releases: list[Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a balancer each request may go to another one."""
    if KUBECONFIG is not None and SECOND_SERVER is None:
        pytest.skip("CMT_TEST_SECOND_SERVER names no second API server")
    configuration = deployed.cluster.api.configuration
    hosts = [configuration.host, SECOND_SERVER or deployed.emulation.second_server()]  # type: ignore[union-attr]
    send, asked = Cluster._send, itertools.count()

    def in_turn(self: Cluster, *arguments: Any, **named: Any) -> Any:
        self.api.configuration.host = hosts[next(asked) % 2]
        return send(self, *arguments, **named)

    monkeypatch.setattr(Cluster, "_send", in_turn)
    deployed.upgrade(releases[1])
    deployed.rollback()
    deployed.settled(1)
    assert next(asked) > 20


# Failures that real nodes can't be asked for.


@pytest.mark.long
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("init", r"init container pull-release: .*exit code 1, Error: .*StoreError: release 3 came; /store holds 1, 2"),
        ("evicted", r"3 pods have failed, such as pod .*: it has failed \(Evicted: The node was low on"),
        (
            "never_ready",
            r".* has timed out progressing.*; pod .*: Unhealthy: Readiness probe failed: HTTP probe failed",
        ),
        ("mount", r".* has timed out progressing.*; pod .*: FailedMount: MountVolume\.SetUp failed .* not found"),
        ("gated", r".* has timed out progressing.*; pod .*: it may not be scheduled yet"),
        ("unschedulable", r".* has timed out progressing.*no node has room for it \(0/3 nodes are available"),
    ],
)
def test_pods_that_dont_get_ready_lead_back_with_the_reason(
    played: Place, releases: list[Release], fault: Fault, said: str
) -> None:
    assert played.kubelet
    played.kubelet.faults["2"] = fault
    with pytest.raises(StepFailed, match=f"load on .*: {said}"):
        played.upgrade(releases[1])
    played.settled(1)


@pytest.mark.long
def test_a_flip_that_gets_stuck_leads_back_and_costs_no_replica(played: Place, releases: list[Release]) -> None:
    kubelet, least = played.kubelet, [REPLICAS]
    assert kubelet
    over = threading.Event()

    def count() -> None:
        while not over.wait(0.01):
            least.append(sum(pod.ready for pod in played.pods(**{"cmt/track": "stable"})))

    counter = threading.Thread(target=count)
    counter.start()
    try:
        with pytest.raises(StepFailed, match=r"flip on .*CrashLoopBackOff"):
            played.upgrade(releases[1], at={"flip": lambda: kubelet.faults.update({"2": "crash"})})
    finally:
        over.set()
        counter.join()
    assert min(least) == REPLICAS
    played.settled(1)


@pytest.mark.long
def test_a_stuck_rolling_update_that_a_killed_driver_left_is_undone(played: Place, releases: list[Release]) -> None:
    assert played.kubelet
    played.kubelet.faults["2"] = "image"
    target = played.target()
    with target.lock():
        target._apply(STABLE, 2, previous=1)
    played.upgrade(releases[2])
    assert "back to release 1, for release 2 was stuck" in played.said("recover")
    played.settled(3)


@pytest.mark.long
def test_a_driver_that_lost_its_lease_changes_nothing_more(
    deployed: Place, releases: list[Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lease, "_renew", lambda self, over: None)
    with pytest.raises(RollbackFailed, match=r"(canary|flip) on .*: lost the lease"):
        deployed.upgrade(releases[1], at={"flip": lambda: time.sleep(TIMING.lease_s + 0.1)})
    assert deployed.live() == 1
    deployed.upgrade(releases[1], QUICK, replace(TIMING, lease_s=30))
    deployed.settled(2)
