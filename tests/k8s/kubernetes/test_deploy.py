"""`cmt deploy`: on a real cluster if one is given, else on the emulated API server."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from cmt_release.release import Release
from cmt_rollout.errors import ClusterError, StepFailed
from cmt_rollout.kubernetes.layout import CANARY, STABLE
from cmt_rollout.kubernetes.overlays import ORDER, autoscaled, in_order, merged, overridden, read_overlay, read_patch
from emulated_api.kubelet import BAD_IMAGE
from k8s_place import REPLICAS, Place, manifests, placed

ROOT = Path(__file__).parents[3]
OVERLAYS = sorted(path.parent for path in (ROOT / "k8s" / "overlays").glob("*/kustomization.yaml"))
#: Kinds of extensions that the emulated API server hasn't; a cluster without them refuses those overlays by name.
EXTENSIONS = {"ScaledObject", "PodMonitor", "PrometheusRule"}


def owned(place: Place, name: str, manager: str) -> str:
    """What a manager owns of a Deployment, as text."""
    fields = place.deployment(name)["metadata"]["managedFields"]
    return json.dumps([entry["fieldsV1"] for entry in fields if entry["manager"] == manager])


def test_everything_is_there_and_available(place: Place) -> None:
    place.deploy(release=7)
    place.settled(7)
    assert place.said("preflight") == "5 objects pass a dry run"
    assert place.said("watch") == f"{STABLE}, {CANARY} available"


def test_a_second_time_changes_nothing_and_deletes_nothing(deployed: Place) -> None:
    cluster = deployed.cluster
    extra = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "extra"}, "data": {"a": "1"}}
    cluster.apply(cluster.path("configmaps", "extra"), extra, "somebody-else")
    before = [deployed.deployment(name)["spec"] for name in (STABLE, CANARY)]
    deployed.deploy()
    assert [deployed.deployment(name)["spec"] for name in (STABLE, CANARY)] == before
    assert cluster.find(cluster.path("configmaps", "extra"))


def test_a_dry_run_changes_nothing(place: Place) -> None:
    place.deploy(dry_run=True)
    assert place.said("preflight") == f"the namespace {place.namespace} isn't there yet: no more than that can be tried"
    assert place.cluster.find(f"/api/v1/namespaces/{place.namespace}") is None
    place.deploy()
    generation = place.deployment()["metadata"]["generation"]
    place.deploy(manifests(place.namespace, replicas=3), dry_run=True)
    assert place.deployment()["metadata"]["generation"] == generation


@pytest.mark.long
def test_the_live_release_stays_whatever_the_manifests_say(deployed: Place, releases: list[Release]) -> None:
    deployed.upgrade(releases[1])
    deployed.deploy(manifests(deployed.namespace, replicas=3))
    assert deployed.live() == 2
    assert deployed.target().previous() == 1
    assert len(deployed.pods()) == 3
    with pytest.raises(StepFailed, match=r"release 2 is live; `cmt upgrade 3 --kubernetes` moves it"):
        deployed.deploy(release=3)


def test_what_upgrades_decide_on_is_handed_over_to_them(deployed: Place) -> None:
    for name in (STABLE, CANARY):
        assert "CMT_RELEASE" in owned(deployed, name, "cmt-rollout")
        assert "CMT_RELEASE" not in owned(deployed, name, "cmt-deploy")
        assert "HOME" in owned(deployed, name, "cmt-deploy")
        assert ("replicas" in owned(deployed, name, "cmt-deploy")) is (name == STABLE)
    assert "replicas" in owned(deployed, CANARY, "cmt-rollout")


def test_a_deployment_cut_off_before_the_handover_is_mended_by_the_next(place: Place, releases: list[Release]) -> None:
    """The release is then the deployer's alone; giving it up first would take it out of the pods."""
    for item in manifests(place.namespace):
        place.cluster.apply(place.cluster.path_of(item), item, "cmt-deploy")
    place.deploy()
    place.settled(1)
    assert "CMT_RELEASE" not in owned(place, STABLE, "cmt-deploy")
    place.upgrade(releases[1])
    place.settled(2)


def test_the_pod_template_can_be_overridden(place: Place) -> None:
    patch = {"spec": {"containers": [{"name": "triton", "env": [{"name": "MORE", "value": "1"}]}]}}
    place.deploy(override=patch)
    (container,) = place.deployment()["spec"]["template"]["spec"]["containers"]
    assert {entry["name"]: entry["value"] for entry in container["env"]} == {
        "CMT_RELEASE": "1",
        "HOME": "/tmp",
        "MORE": "1",
    }


@pytest.mark.long
def test_an_image_that_cant_be_pulled_is_said(place: Place) -> None:
    items = manifests(place.namespace, image=f"{BAD_IMAGE}:1")
    with pytest.raises(StepFailed, match=r"watch on .*: container triton: its image .*no-such-image"):
        place.deploy(items)


@pytest.mark.long
def test_a_bad_change_costs_no_replica(deployed: Place) -> None:
    with pytest.raises(StepFailed, match=r"no-such-image"):
        deployed.deploy(manifests(deployed.namespace, image=f"{BAD_IMAGE}:1"))
    assert sum(pod.ready for pod in deployed.with_traffic()) == REPLICAS


def test_manifests_of_another_namespace_are_refused(place: Place) -> None:
    with pytest.raises(ValueError, match=r"for the namespace elsewhere; --namespace is"):
        place.deploy(manifests("elsewhere"))


def test_a_kind_that_the_cluster_hasnt_is_refused_before_anything_is_applied(place: Place) -> None:
    monitor = {"apiVersion": "monitoring.example/v1", "kind": "Monitor", "metadata": {"name": "one"}, "spec": {}}
    with pytest.raises(StepFailed, match=r"preflight on .*: Monitor one: .*doesn't know Monitor"):
        place.deploy([*manifests(place.namespace), monitor])
    assert place.cluster.find(place.cluster.path("deployments", STABLE, "apps/v1")) is None


def test_replicas_are_left_to_an_autoscaler(deployed: Place) -> None:
    scaler: dict[str, Any] = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": STABLE, "namespace": deployed.namespace},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": STABLE},
            "minReplicas": REPLICAS,
            "maxReplicas": 5,
            "metrics": [
                {
                    "type": "Resource",
                    "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}},
                }
            ],
        },
    }
    items = [*manifests(deployed.namespace), scaler]
    assert autoscaled(items, items[3])
    assert not autoscaled(items, items[4])
    path = deployed.cluster.path("deployments", STABLE, "apps/v1")
    scaled = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": STABLE}, "spec": {"replicas": 3}}
    deployed.cluster.apply(path, scaled, "autoscaler", force_conflicts=True)
    deployed.deploy(items)
    assert deployed.deployment()["spec"]["replicas"] == 3


@pytest.mark.long
@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_the_overlays_of_this_repository_deploy(place: Place, overlay: Path, releases: list[Release]) -> None:
    """On real nodes, which would need their images, a server-side dry run."""
    items = [item for item in read_overlay(overlay) if item["kind"] not in EXTENSIONS]
    if place.kubelet is None:
        (namespace,) = (item for item in placed(items, place.namespace) if item["kind"] == "Namespace")
        place.cluster.apply(place.cluster.path_of(namespace), namespace, "cmt-deploy")
        place.deploy(placed(items, place.namespace), release=1, dry_run=True)
        assert "objects pass a dry run" in place.said("preflight")
        return
    place.deploy(placed(items, place.namespace), release=1)
    assert place.live() == 1
    place.upgrade(releases[1])
    assert place.live() == 2
    assert {pod.release for pod in place.with_traffic()} == {"2"}
    for item in items:
        if item["kind"] == "PersistentVolume":  # in no namespace that goes
            place.cluster.request("DELETE", place.cluster.path_of(item))


def test_objects_come_in_an_order_that_a_cluster_takes() -> None:
    items = [{"kind": kind} for kind in ("PodMonitor", *reversed(ORDER))]
    assert [item["kind"] for item in in_order(items)] == [*ORDER, "PodMonitor"]


@pytest.mark.parametrize(
    ("before", "patch", "after"),
    [
        ({"a": 1, "b": 2}, {"b": None, "c": 3}, {"a": 1, "c": 3}),
        ({"a": {"b": 1}}, {"a": {"c": 2}}, {"a": {"b": 1, "c": 2}}),
        (
            [{"name": "x", "v": 1}],
            [{"name": "x", "w": 2}, {"name": "y"}],
            [{"name": "x", "v": 1, "w": 2}, {"name": "y"}],
        ),
        (["a"], ["b"], ["b"]),
        ([{"name": "x"}], [], []),
    ],
)
def test_a_patch_is_merged(before: Any, patch: Any, after: Any) -> None:
    unchanged = copy.deepcopy(before)
    assert merged(before, patch) == after
    assert before == unchanged


def test_an_override_reaches_pod_templates_alone() -> None:
    items = manifests("cmt")
    changed = overridden(items, {"spec": {"nodeName": "one"}})
    assert [item["spec"]["template"]["spec"].get("nodeName") for item in changed[3:]] == ["one", "one"]
    assert changed[:3] == items[:3]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("- 1\n- 2", "holds something that is no Kubernetes object"),
        ("a: b", "holds something that is no Kubernetes object"),
        ("a: [", "isn't YAML"),
    ],
)
def test_files_that_arent_manifests_are_refused(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=said):
        read_overlay(path)


def test_a_patch_must_be_a_mapping(tmp_path: Path) -> None:
    path = tmp_path / "patch.yaml"
    path.write_text("- 1")
    with pytest.raises(ValueError, match="expected a part of a pod template"):
        read_patch(path)


def test_folders_need_a_kustomization_and_kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"has no kustomization\.yaml"):
        read_overlay(tmp_path)
    with pytest.raises(ValueError, match="neither a folder nor a file"):
        read_overlay(tmp_path / "none")
    (tmp_path / "kustomization.yaml").write_text("resources: [none.yaml]")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match=r"kubectl isn't here to render it"):
        read_overlay(tmp_path)


def test_rendered_yaml_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "all.yaml"
    path.write_text(yaml.safe_dump_all(reversed(manifests("cmt"))))
    assert next(item["kind"] for item in read_overlay(path)) == "Namespace"
    assert re.match("Deployment", read_overlay(path)[-1]["kind"])
