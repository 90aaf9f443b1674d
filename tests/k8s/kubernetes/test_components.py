"""Components added to a running service and taken away again, and fields that pass from hand to hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from cmt_rollout.errors import StepFailed
from cmt_rollout.kubernetes.cluster import MERGE
from cmt_rollout.kubernetes.layout import CANARY, STABLE, TRAFFIC
from cmt_rollout.kubernetes.pods import Pod
from emulated_api.requests import EXTENSIONS
from k8s_place import TIMING, Place, manifests, placed, wait_until
from rendering import K8S, kustomized, one

SERVING = 3
FORCED = replace(TIMING, force_conflicts=True)
COMPONENTS = sorted(path.parent.name for path in (K8S / "components").glob("*/kustomization.yaml"))
#: What a component is added to, where that isn't the base with its canary.
BENEATH = {"canary": (), "mig": ("canary", "gpu-node")}
Objects = list[dict[str, Any]]


def with_components(place: Place, *names: str) -> Objects:
    items = placed(kustomized("base", *(f"components/{name}" for name in names)), place.namespace)
    stable = one(items, "Deployment", STABLE)["spec"]
    if "replicas" in stable:
        stable["replicas"] = SERVING
    return [item for item in items if place.emulation or item["apiVersion"] not in EXTENSIONS]


@contextmanager
def ready_counts(place: Place) -> Iterator[list[int]]:
    """Filled at the end: how many ready pods the Services had, after each change of a pod in the block."""
    counts: list[int] = []
    state = {pod.name: pod.ready for pod in place.with_traffic()}
    listed = place.cluster.request("GET", place.cluster.path("pods"))["metadata"]["resourceVersion"]
    yield counts
    for event, item in changes(place, listed):
        pod = Pod.of(item)
        state[pod.name] = pod.ready and pod.labels.get(TRAFFIC) == "yes" and event != "DELETED"
        counts.append(sum(state.values()))


def changes(place: Place, since: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Of the pods, from a version on: from the emulation's history, or as a watch tells them again."""
    if place.emulation is None:
        yield from place.cluster._events(place.cluster.path("pods"), [("resourceVersion", since)], 1)
        return
    for version, event, (plural, _, _), item in list(place.emulation.store.history):
        if plural == "pods" and version > int(since):
            yield event, item


@pytest.fixture
def serving(place: Place) -> Place:
    """A namespace where every extension is installed, and pods come and go."""
    if place.kubelet is None:
        pytest.skip("real nodes would need the images of these manifests")
    if place.emulation:
        place.emulation.install()
    place.kubelet.ready_s = place.kubelet.leave_s = 0.02
    return place


@pytest.mark.long
@pytest.mark.parametrize("component", COMPONENTS)
def test_a_component_comes_and_goes_without_a_pod_less(serving: Place, component: str) -> None:
    beneath = BENEATH.get(component, ("canary",))
    serving.deploy(with_components(serving, *beneath), release=1)
    with ready_counts(serving) as counts:
        serving.deploy(with_components(serving, *beneath, component))
        serving.deploy(with_components(serving, *beneath))
    assert min(counts, default=SERVING) == SERVING
    assert len(serving.with_traffic()) == serving.deployment()["spec"]["replicas"] == SERVING


@pytest.mark.long
def test_an_autoscaler_is_left_the_count_that_it_came_to(serving: Place) -> None:
    """In its time, and after it has left the manifests: nothing is deleted, so it decides on until somebody does."""
    serving.deploy(with_components(serving, "canary"), release=1)
    serving.deploy(with_components(serving, "canary", "autoscaling-hpa"))
    scalers = serving.cluster.path("horizontalpodautoscalers", STABLE, "autoscaling/v2")
    least: dict[str, Any] = {"spec": {"minReplicas": 5}}
    serving.cluster.request("PATCH", scalers, least, [("fieldManager", "somebody")], MERGE)
    wait_until(lambda: sum(pod.ready for pod in serving.with_traffic()) == 5)
    with ready_counts(serving) as counts:
        serving.deploy(with_components(serving, "canary", "autoscaling-hpa"), timing=FORCED)
        serving.deploy(with_components(serving, "canary"))
    assert f"kubectl delete hpa {STABLE} -n {serving.namespace}" in serving.said("preflight")
    assert serving.deployment()["spec"]["replicas"] == 5
    assert min(counts, default=5) == 5
    serving.cluster.request("DELETE", scalers)
    with pytest.raises(StepFailed, match=r"kube-controller-manager sets \.spec\.replicas"):
        serving.deploy(with_components(serving, "canary"))
    serving.deploy(with_components(serving, "canary"), timing=FORCED)
    assert serving.deployment()["spec"]["replicas"] == SERVING


def test_a_service_begins_with_the_least_pods_of_its_autoscaler(serving: Place) -> None:
    serving.deploy(with_components(serving, "canary", "autoscaling-hpa"), release=1)
    assert serving.deployment()["spec"]["replicas"] == 2


def test_a_first_deployment_tries_no_release(serving: Place) -> None:
    """Whatever the manifests say of the canary."""
    items = with_components(serving, "canary")
    one(items, "Deployment", CANARY)["spec"]["replicas"] = SERVING
    serving.deploy(items, release=1)
    assert len(serving.pods()) == SERVING
    assert serving.deployment(CANARY)["spec"]["replicas"] == 0


def test_what_others_set_beside_the_manifests_stays(serving: Place) -> None:
    """Resources and labels that the manifests leave to somebody: the label of a tool, a size that is tuned."""
    serving.deploy(manifests(serving.namespace))
    item = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": STABLE, "labels": {"tool": "x"}},
        "spec": {"template": {"spec": {"containers": [{"name": "triton", "resources": {"limits": {"cpu": "3"}}}]}}},
    }
    serving.cluster.apply(serving.cluster.path("deployments", STABLE, "apps/v1"), item, "tuner")
    serving.deploy(manifests(serving.namespace, replicas=3))
    deployment = serving.deployment()
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert (deployment["metadata"]["labels"]["tool"], container["resources"]) == ("x", {"limits": {"cpu": "3"}})
