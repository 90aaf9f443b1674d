"""Components added to a running service and taken away again, and fields that pass from hand to hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cmt_rollout.errors import StepFailed
from cmt_rollout.kubernetes.layout import CANARY, STABLE
from k8s_place import TIMING, Place, hastened, manifests, wait_until
from rendering import K8S, kustomized, one

SERVING = 6
COMPONENTS = sorted(path.parent.name for path in (K8S / "components").glob("*/kustomization.yaml"))
#: What a component is added to, where that isn't the base with its canary.
BENEATH = {"canary": (), "mig": ("canary", "gpu-node")}
Objects = list[dict[str, Any]]


def with_components(*names: str) -> Objects:
    items = hastened(kustomized("base", *(f"components/{name}" for name in names)))
    stable = one(items, "Deployment", STABLE)["spec"]
    if "replicas" in stable:
        stable["replicas"] = SERVING
    return items


def least_ready(place: Place, since: int) -> int:
    """The lowest number of ready pods that the Services had at any version of the store from then on."""
    assert place.emulation
    pods: dict[str, bool] = {}
    counts = []
    for version, event, (plural, _, name), item in list(place.emulation.store.history):
        if plural != "pods":
            continue
        conditions = item["status"].get("conditions", ())
        ready = any((each["type"], each["status"]) == ("Ready", "True") for each in conditions)
        serves = item["metadata"]["labels"].get("cmt/traffic") == "yes" and "deletionTimestamp" not in item["metadata"]
        pods[name] = ready and serves and event != "DELETED"
        if version >= since:
            counts.append(sum(pods.values()))
    return min(counts, default=sum(pods.values()))


@pytest.fixture
def serving(emulated_place: Place) -> Place:
    """An emulated namespace with every extension installed."""
    assert emulated_place.emulation
    emulated_place.emulation.install()
    emulated_place.emulation.kubelet.ready_s = emulated_place.emulation.kubelet.leave_s = 0.02
    return emulated_place


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_component_comes_and_goes_without_a_pod_less(serving: Place, component: str) -> None:
    assert serving.emulation
    beneath = BENEATH.get(component, ("canary",))
    serving.deploy(with_components(*beneath), release=1)
    since = serving.emulation.store.version
    serving.deploy(with_components(*beneath, component))
    serving.deploy(with_components(*beneath))
    assert least_ready(serving, since) == SERVING
    assert serving.deployment()["spec"]["replicas"] == SERVING


def test_an_autoscaler_is_left_the_count_that_it_came_to(serving: Place) -> None:
    """In its time, and after it has left the manifests: nothing is deleted, so it decides on until somebody does."""
    assert serving.emulation
    serving.deploy(with_components("canary"), release=1)
    serving.deploy(with_components("canary", "autoscaling-hpa"))
    since = serving.emulation.store.version
    serving.emulation.controllers.demand[STABLE] = 8
    wait_until(lambda: len(serving.with_traffic()) == 8)
    serving.deploy(with_components("canary", "autoscaling-hpa"))
    serving.deploy(with_components("canary"))
    assert f"kubectl delete hpa {STABLE} -n cmt" in serving.said("preflight")
    assert serving.deployment()["spec"]["replicas"] == 8
    assert least_ready(serving, since) == SERVING
    scalers = serving.cluster.path("horizontalpodautoscalers", STABLE, "autoscaling/v2")
    serving.cluster.request("DELETE", scalers)
    with pytest.raises(StepFailed, match=r"kube-controller-manager sets \.spec\.replicas"):
        serving.deploy(with_components("canary"))
    serving.deploy(with_components("canary"), timing=replace(TIMING, force_conflicts=True))
    assert serving.deployment()["spec"]["replicas"] == SERVING


def test_a_service_begins_with_the_least_pods_of_its_autoscaler(serving: Place) -> None:
    serving.deploy(with_components("canary", "autoscaling-keda"), release=1)
    assert serving.deployment()["spec"]["replicas"] == 2


def test_a_first_deployment_tries_no_release(serving: Place) -> None:
    """Whatever the manifests say of the canary."""
    items = with_components("canary")
    one(items, "Deployment", CANARY)["spec"]["replicas"] = SERVING
    serving.deploy(items, release=1)
    assert len(serving.pods()) == SERVING
    assert serving.deployment(CANARY)["spec"]["replicas"] == 0


def test_what_others_set_beside_the_manifests_stays(serving: Place) -> None:
    """Resources and labels that the manifests leave to somebody: the label of a tool, a size that is tuned."""
    serving.deploy(manifests("cmt"))
    item = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": STABLE, "labels": {"tool": "x"}},
        "spec": {"template": {"spec": {"containers": [{"name": "triton", "resources": {"limits": {"cpu": "3"}}}]}}},
    }
    serving.cluster.apply(serving.cluster.path("deployments", STABLE, "apps/v1"), item, "tuner")
    serving.deploy(manifests("cmt", replicas=3))
    deployment = serving.deployment()
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert (deployment["metadata"]["labels"]["tool"], container["resources"]) == ("x", {"limits": {"cpu": "3"}})
