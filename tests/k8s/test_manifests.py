"""Every overlay renders, passes the schemas of three Kubernetes versions and agrees with itself."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from cmt_rollout.kubernetes import layout
from cmt_rollout.kubernetes.manifest_rules import RULES, faults
from cmt_rollout.kubernetes.rendered import quantity, selects
from cmt_server.advisories import CURRENT_CONTAINER, CURRENT_VERSION
from cmt_server.binary import triton_version
from custom_resources import SPECS
from rendering import K8S, RENDERED, kustomized, one, rendered, rendered_text

ROOT = K8S.parent
SERVER_IMAGES = [ROOT / "server" / "Dockerfile", K8S / "images" / "cpu.Dockerfile", K8S / "images" / "gpu.Dockerfile"]
PAGE = (ROOT / "docs" / "kubernetes.md").read_text()
KUBERNETES = ("1.35", "1.36", "1.37")
PRODUCT, SLICE = "nvidia.com/gpu.product", "nvidia.com/mig-1g.10gb"
#: Of its own, since its dependencies are pinned to others than ours: `make checkov` makes it.
CHECKOV = ROOT / ".cmt" / "checkov" / "bin" / "checkov"

Objects = list[dict[str, Any]]


def stable(objects: Objects) -> Any:
    return one(objects, "Deployment", layout.STABLE)["spec"]


def canary(objects: Objects) -> Any:
    return one(objects, "Deployment", layout.CANARY)["spec"]


def triton(objects: Objects) -> Any:
    return stable(objects)["template"]["spec"]["containers"][0]


@pytest.mark.long
@pytest.mark.parametrize("name", RENDERED)
def test_everything_renders_and_nothing_is_at_fault(name: str) -> None:
    objects = rendered(name)
    assert objects
    assert not faults(objects)
    kept = [each for each in objects if each["kind"] not in ("Namespace", "PersistentVolume")]
    assert {each["metadata"].get("namespace") for each in kept} == {layout.NAMESPACE}


def test_every_overlay_and_every_component_is_rendered() -> None:
    ours = [K8S / each for each in ("base", "overlays", "components", "training")]
    folders = {path.parent for folder in ours for path in folder.rglob("kustomization.yaml")}
    seen: set[Path] = set()
    left = [K8S / each for folders_of in RENDERED.values() for each in folders_of]
    while left:
        folder = left.pop()
        seen.add(folder)
        kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
        named = [*kustomization.get("resources", ()), *kustomization.get("components", ())]
        left += [path for each in named if (path := (folder / each).resolve()).is_dir()]
    assert seen == folders


@pytest.mark.long
@pytest.mark.parametrize("version", KUBERNETES)
def test_objects_pass_the_strict_schemas(version: str) -> None:
    """Each object once, however many overlays have it."""
    unlike = {json.dumps(each, sort_keys=True): each for name in RENDERED for each in rendered(name)}
    for each in unlike.values():
        if (each["apiVersion"], each["kind"]) not in SPECS:
            assert kubernetes_validate.validate(each, version, strict=True) == version


def test_the_schemas_are_strict() -> None:
    deployment = one(rendered("cpu"), "Deployment", layout.STABLE)
    deployment["spec"]["template"]["spec"]["terminationGracePeriod"] = 90
    with pytest.raises(kubernetes_validate.ValidationError, match="terminationGracePeriod"):
        kubernetes_validate.validate(deployment, KUBERNETES[0], strict=True)


@pytest.mark.parametrize("name", ["cpu, HPA", "gpu, KEDA"])
def test_custom_resources_have_their_shape(name: str) -> None:
    found = [each for each in rendered(name) if (each["apiVersion"], each["kind"]) in SPECS]
    assert len(found) >= 4
    for each in found:
        jsonschema.validate(each["spec"], SPECS[each["apiVersion"], each["kind"]])


def test_a_misspelt_field_of_a_custom_resource_is_found() -> None:
    monitor = one(rendered("cpu, HPA"), "PodMonitor", "cmt-triton")
    monitor["spec"]["podMetricsEndpoints"][0]["scrapeInterval"] = "15s"
    with pytest.raises(jsonschema.ValidationError, match="scrapeInterval"):
        jsonschema.validate(monitor["spec"], SPECS[monitor["apiVersion"], monitor["kind"]])


@pytest.mark.parametrize("name", ["cpu", "gpu", "gpu-mig", "dev"])
def test_names_are_those_that_upgrades_look_for(name: str) -> None:
    objects = rendered(name)
    assert one(objects, "Namespace", layout.NAMESPACE)
    for track, expected in (("stable", layout.TRAFFIC_YES), ("canary", None)):
        spec = stable(objects) if track == "stable" else canary(objects)
        labels, pod = spec["template"]["metadata"]["labels"], spec["template"]["spec"]
        assert labels[layout.TRACK] == track
        assert labels.get(layout.TRAFFIC) == expected
        assert labels[layout.RELEASE].isdigit()
        assert [c["name"] for c in pod["containers"]] == [layout.CONTAINER]
        assert [c["name"] for c in pod["initContainers"]] == [layout.INIT_CONTAINER]
        assert layout.release_of({"spec": spec}) == int(labels[layout.RELEASE])
    assert canary(objects)["replicas"] == 0
    assert stable(objects)["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert one(objects, "ServiceAccount", "cmt-triton")["automountServiceAccountToken"] is False
    assert one(objects, "Service", "cmt-triton-grpc")["spec"]["clusterIP"] == "None"


def test_replicas_of_an_overlay_are_the_stable_pods_alone() -> None:
    """Kustomize's `replicas` goes by any name that an object had on its way."""
    objects = kustomized("overlays/cpu", replicas=[{"name": layout.STABLE, "count": 6}])
    assert (stable(objects)["replicas"], canary(objects)["replicas"]) == (6, 0)


def test_the_canary_differs_by_its_labels_alone() -> None:
    objects = rendered("gpu")
    assert canary(objects)["template"]["spec"] == stable(objects)["template"]["spec"]


@pytest.mark.parametrize(
    ("name", "resource"), [("gpu", "nvidia.com/gpu"), ("gpu-mig", "nvidia.com/mig-1g.10gb"), ("cpu", None)]
)
def test_engines_are_built_on_what_they_run_on(name: str, resource: str | None) -> None:
    pods = [stable(rendered(name))["template"]["spec"], canary(rendered(name))["template"]["spec"]]
    if resource:
        job = one(rendered(f"{name}/engine-build"), "Job", "cmt-engine-build")
        pods.append(job["spec"]["template"]["spec"])
        assert not faults([*rendered(name), *rendered(f"{name}/engine-build")])
    gpus = [{k: v for k, v in pod["containers"][0]["resources"]["limits"].items() if "nvidia" in k} for pod in pods]
    assert gpus == [{resource: 1} if resource else {}] * len(pods)
    assert all(pod.get("nodeSelector") == pods[0].get("nodeSelector") for pod in pods)
    assert ("nodeSelector" in pods[0]) == bool(resource)


def test_an_autoscaled_deployment_leaves_its_replicas_alone() -> None:
    for name in ("cpu, HPA", "gpu, KEDA"):
        assert "replicas" not in stable(rendered(name))
        assert canary(rendered(name))["replicas"] == 0


def _hpa(objects: Objects) -> Any:
    return one(objects, "HorizontalPodAutoscaler", "cmt-triton")["spec"]


def _budget(objects: Objects) -> Any:
    return one(objects, "PodDisruptionBudget", "cmt-triton")["spec"]


def _both_budgets(objects: Objects) -> None:
    _budget(objects)["minAvailable"] = 1


def _two_autoscalers(objects: Objects) -> None:
    objects.append(one(rendered("gpu, KEDA"), "ScaledObject", "cmt-triton"))


def _pod(objects: Objects) -> Any:
    return stable(objects)["template"]["spec"]


#: Rule -> a change of the manifests, and what the rule says to it.
BROKEN: list[tuple[str, Callable[[Objects], object], str]] = [
    (
        "selectors_match",
        lambda o: stable(o)["selector"]["matchLabels"].pop("cmt/track"),
        "selects the pods of Deployment cmt-triton, Deployment cmt-triton-canary",
    ),
    ("selectors_match", lambda o: stable(o)["selector"]["matchLabels"].update(app="x"), "selects the pods of nobody"),
    (
        "selectors_match",
        lambda o: _pod(o)["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"].update(app="x"),
        "among pods that aren't its own",
    ),
    (
        "services_reach_pods",
        lambda o: stable(o)["template"]["metadata"]["labels"].pop("cmt/traffic"),
        "Service cmt-triton-grpc selects no pods",
    ),
    (
        "services_reach_pods",
        lambda o: canary(o)["template"]["metadata"]["labels"].update({"cmt/traffic": "yes"}),
        "sends requests to Deployment cmt-triton-canary before it was judged",
    ),
    (
        "services_reach_pods",
        lambda o: one(o, "Service", "cmt-triton")["spec"]["ports"][0].update(targetPort="web"),
        "sends port 8000 to web",
    ),
    ("budgets_agree", lambda o: _budget(o).update(maxUnavailable=0), "nodes can't be drained"),
    ("budgets_agree", lambda o: _budget(o).update(maxUnavailable=2), "lets all 2 pods go at once"),
    ("budgets_agree", _both_budgets, "both or neither"),
    ("budgets_agree", lambda o: _budget(o)["selector"]["matchLabels"].pop("cmt/track"), "covers 2 Deployments"),
    ("autoscalers_agree", lambda o: _hpa(o).update(minReplicas=1), "keeps 1 to 20 pods"),
    ("autoscalers_agree", lambda o: _hpa(o)["scaleTargetRef"].update(name="triton"), "scales triton, which isn't"),
    ("autoscalers_agree", lambda o: stable(o).update(replicas=2), "sets replicas, and its autoscaler does"),
    ("autoscalers_agree", _two_autoscalers, "has 2 autoscalers"),
    ("canaries_wait", lambda o: canary(o).update(replicas=6), "canary has 6 pods before anything is on trial"),
    ("grace_adds_up", lambda o: _pod(o).update(terminationGracePeriodSeconds=50), "killed after 50 s; it may take 55"),
    ("grace_adds_up", lambda o: triton(o)["args"].pop(), "doesn't say --drain-timeout-s"),
    ("grace_adds_up", lambda o: triton(o).pop("lifecycle"), "drains before proxies know"),
    (
        "probes_fit",
        lambda o: triton(o)["readinessProbe"].update(httpGet={"path": "/", "port": "web"}),
        "readinessProbe of triton asks port web",
    ),
    ("probes_fit", lambda o: stable(o).update(progressDeadlineSeconds=600), "given up before its start's 600 s"),
    (
        "reasons_are_kept",
        lambda o: triton(o).pop("terminationMessagePolicy"),
        "Deployment cmt-triton: nobody learns why triton ended",
    ),
    ("ports_are_served", lambda o: triton(o)["ports"][1].update(containerPort=9001), "names port 9001 grpc"),
    ("variables_are_defined", lambda o: triton(o)["env"].pop(0), r"uses \$\(CMT_RELEASE\), which isn't set"),
    (
        "variables_are_defined",
        lambda o: one(o, "ConfigMap", "cmt-triton")["data"].clear(),
        "takes CMT_STORE from ConfigMap cmt-triton, which hasn't it",
    ),
    ("variables_are_defined", lambda o: o.remove(one(o, "ConfigMap", "cmt-triton")), "which isn't here"),
    (
        "variables_are_defined",
        lambda o: _pod(o)["initContainers"][0]["envFrom"][0]["secretRef"].pop("optional"),
        "needs Secret cmt-store",
    ),
    ("releases_agree", lambda o: triton(o)["env"][0].update(value="2"), "labelled release 1; .*triton: 2"),
    ("resources_are_said", lambda o: triton(o)["resources"]["limits"].pop("memory"), "no limit of memory"),
    (
        "resources_are_said",
        lambda o: triton(o)["resources"]["requests"].update(cpu="64"),
        "requests more cpu than its limit",
    ),
    (
        "memory_volumes_fit",
        lambda o: next(v for v in _pod(o)["volumes"] if v["name"] == "shm")["emptyDir"].pop("sizeLimit"),
        "memory volumes of",
    ),
    ("memory_volumes_fit", lambda o: triton(o)["volumeMounts"].pop(2), "no volume at /dev/shm"),
    ("volumes_are_there", lambda o: _pod(o)["volumes"].pop(), "which is no volume"),
    ("volumes_are_there", lambda o: triton(o)["volumeMounts"].pop(1), "writes to /tmp"),
    ("images_are_pinned", lambda o: triton(o).update(image="cmt-triton"), "runs cmt-triton; name a version"),
    ("images_are_pinned", lambda o: triton(o).update(image="host:5000/cmt-triton:latest"), "name a version"),
    ("pods_are_locked", lambda o: _pod(o)["securityContext"].update(runAsUser=0), "may run as root"),
    ("pods_are_locked", lambda o: _pod(o).pop("automountServiceAccountToken"), "gets a token"),
    ("pods_are_locked", lambda o: triton(o)["securityContext"].pop("readOnlyRootFilesystem"), "isn't locked down"),
    ("pods_are_locked", lambda o: _pod(o)["securityContext"].pop("seccompProfile"), "no seccomp"),
    (
        "policies_name_ports",
        lambda o: one(o, "NetworkPolicy", "metrics")["spec"]["ingress"][0]["ports"][0].update(port="web"),
        "NetworkPolicy metrics opens web",
    ),
    (
        "monitors_reach_pods",
        lambda o: one(o, "PodMonitor", "cmt-triton")["spec"]["podMetricsEndpoints"][0].update(port="web"),
        "PodMonitor asks port web",
    ),
    (
        "monitors_reach_pods",
        lambda o: one(o, "PodMonitor", "cmt-triton")["spec"]["selector"]["matchLabels"].update(app="x"),
        "PodMonitor cmt-triton selects no pods",
    ),
]


def _gpu(objects: Objects) -> Any:
    return triton(objects)["resources"]["limits"]


def _node(objects: Objects) -> Any:
    return _pod(objects)["nodeSelector"]


#: Of the overlay of MIG slices.
BROKEN_GPU: list[tuple[str, Callable[[Objects], object], str]] = [
    ("gpus_are_asked_for", lambda o: _gpu(o).update({SLICE: "500m"}), "asks for 500m of nvidia.com/mig-1g.10gb"),
    ("gpus_are_asked_for", lambda o: _gpu(o).update({"nvidia.com/gpu": 1}), "gpu and nvidia.com/mig-1g.10gb; expected"),
    (
        "gpus_are_asked_for",
        lambda o: triton(o)["resources"]["requests"].update({SLICE: _gpu(o).pop(SLICE)}),
        "without a limit, which Kubernetes refuses",
    ),
    ("gpus_are_asked_for", lambda o: _pod(o).pop("nodeSelector"), "may run on any kind of GPU"),
    ("gpus_are_asked_for", lambda o: _pod(o).pop("tolerations"), "doesn't tolerate the taint nvidia.com/gpu"),
    ("slices_exist", lambda o: _node(o).update({PRODUCT: "NVIDIA-L40S"}), "which can't be cut"),
    (
        "slices_exist",
        lambda o: _node(o).update({PRODUCT: "NVIDIA-H200"}),
        "a slice 1g.10gb of NVIDIA-H200, which has 1g",
    ),
    (
        "slices_exist",
        lambda o: _node(o).update({PRODUCT: "NVIDIA-H200-MIG-1g.18gb"}),
        "asks for nvidia.com/mig-1g.10gb of NVIDIA-H200-MIG-1g.18gb, where slices are nvidia.com/gpu",
    ),
    (
        "plans_are_built_where_they_run",
        lambda o: _node(o).update({PRODUCT: "NVIDIA-A100-SXM4-80GB"}),
        "these differ: Deployment cmt-triton: NVIDIA-A100-SXM4-80GB, nvidia.com/mig-1g.10gb; Deployment cmt-triton-c",
    ),
]


@pytest.mark.parametrize(("rule", "change", "says"), BROKEN_GPU, ids=[f"{each[0]}: {each[2]}" for each in BROKEN_GPU])
def test_a_rule_of_gpus_finds_what_it_is_for(rule: str, change: Callable[[Objects], object], says: str) -> None:
    objects = rendered("gpu-mig")
    change(objects)
    found = faults(objects)
    assert any(re.search(says, fault) for fault in found), found


def test_slices_of_nodes_that_are_cut_alike_are_asked_for_as_gpus() -> None:
    objects = rendered("gpu")
    for spec in (stable(objects), canary(objects)):
        spec["template"]["spec"]["nodeSelector"] = {PRODUCT: "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb"}
    assert not faults(objects)


@pytest.mark.long
@pytest.mark.parametrize(("rule", "change", "says"), BROKEN, ids=[f"{each[0]}: {each[2]}" for each in BROKEN])
def test_a_rule_finds_what_it_is_for(rule: str, change: Callable[[Objects], object], says: str) -> None:
    objects = rendered("cpu, HPA")
    change(objects)
    found = faults(objects)
    assert any(re.search(says, fault) for fault in found), found


def test_every_rule_has_been_seen_to_fail() -> None:
    assert {rule.__name__ for rule in RULES} == {each[0] for each in (*BROKEN, *BROKEN_GPU)}


def test_a_claim_that_isnt_there_is_found() -> None:
    objects = rendered("dev")
    objects.remove(one(objects, "PersistentVolumeClaim", "cmt-dev-store"))
    assert any("mounts claim cmt-dev-store, which isn't here" in fault for fault in faults(objects))


@pytest.mark.parametrize(("text", "number"), [("250m", 0.25), ("2", 2), (3, 3), ("1.5Gi", 1.5 * 2**30), ("1k", 1000)])
def test_quantities(text: str | int, number: float) -> None:
    assert quantity(text) == number


def test_a_quantity_of_an_unknown_unit_is_refused() -> None:
    with pytest.raises(ValueError, match="got '5Gb'"):
        quantity("5Gb")


@pytest.mark.parametrize(
    ("selector", "chosen"),
    [
        ({}, True),
        ({"matchLabels": {"a": "1"}}, True),
        ({"matchLabels": {"a": "2"}}, False),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1", "2"]}]}, True),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}, False),
        ({"matchExpressions": [{"key": "b", "operator": "Exists"}]}, False),
        ({"matchExpressions": [{"key": "b", "operator": "DoesNotExist"}]}, True),
    ],
)
def test_selectors(selector: dict[str, Any], chosen: bool) -> None:
    assert selects(selector, {"a": "1"}) is chosen


@pytest.mark.skipif(not CHECKOV.exists(), reason="checkov isn't installed: make checkov")
def test_checkov_finds_nothing_but_what_the_list_gives_reasons_for(tmp_path: Path) -> None:
    for number, name in enumerate(RENDERED):
        (tmp_path / f"{number}.yaml").write_text(rendered_text(name))
    skipped = yaml.safe_load((ROOT / ".checkov.yaml").read_text())["skip-check"]
    assert _checkov(tmp_path, ROOT / ".checkov.yaml") == set()
    assert _checkov(tmp_path) == set(skipped), "a reason that nothing needs any more"


def _checkov(folder: Path, configuration: Path | None = None) -> set[str]:
    """The checks that failed."""
    command = [str(CHECKOV), "--directory", str(folder), "--framework", "kubernetes", "--output", "json", "--quiet"]
    command += ["--skip-download"] + (["--config-file", str(configuration)] if configuration else [])
    environment = {**os.environ, "LOG_LEVEL": "ERROR"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    report = json.loads(done.stdout)
    return {check["check_id"] for check in report.get("results", {}).get("failed_checks", ())}


@pytest.mark.parametrize("path", sorted((K8S / "images").glob("*.Dockerfile")), ids=lambda path: path.name)
def test_images_are_built_as_hadolint_advises(path: Path) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint isn't installed")
    done = subprocess.run([hadolint, path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
    copied = re.findall(r"^COPY ([\w. ]+) \S+$", path.read_text(), re.MULTILINE)
    assert all((ROOT / name).exists() for line in copied for name in line.split())


@pytest.mark.parametrize("path", SERVER_IMAGES, ids=lambda path: path.name)
def test_images_that_serve_have_what_the_stages_import(path: Path) -> None:
    """Theirs alone is the Triton and its Python; `preprocess` and `check` bring what they decode with."""
    (extras,) = re.findall(r'^RUN .*?"\.\[([\w,-]+)\]"', path.read_text(), re.MULTILINE)
    needed = {re.split(r"[ =<>;]", line)[0] for extra in extras.split(",") for line in requirements(extra)}
    assert {"pillow", "av", "soxr", "tokenizers", "pebble", "s3fs"} <= needed
    assert not {"torch", "nvidia-pytriton"} & needed


def requirements(extra: str) -> list[str]:
    """Of an extra and of those that it names."""
    project = (ROOT / "pyproject.toml").read_text()
    (block,) = re.findall(rf"^{extra} = \[(.*?)\]$", project, re.MULTILINE | re.DOTALL)
    named = re.findall(r'"([^"]+)"', block)
    inner = [name for line in named for name in re.findall(r"^cmt-triton\[([\w,-]+)\]$", line)]
    return [line for line in named if not line.startswith("cmt-triton")] + [
        line for names in inner for name in names.split(",") for line in requirements(name)
    ]


def test_configurations_are_checked_with_the_message_of_the_images_triton() -> None:
    """Every configuration is made of, and read with, tritonclient's ModelConfig: a field that this Triton lacks fails.

    A newer tritonclient may know fields that the image's Triton doesn't: raise both together.
    """
    for path in SERVER_IMAGES:
        assert f"ARG TRITON_IMAGE={CURRENT_CONTAINER}\n" in path.read_text()
    assert triton_version(importlib.metadata.version("tritonclient")) == CURRENT_VERSION


def test_the_docs_name_files_that_are_there() -> None:
    for path in re.findall(r"(?<![\w/])k8s/[\w./-]*\w", PAGE):
        assert (ROOT / path).exists(), path
    for folder in re.findall(r"apply -k ([\w./-]+)", PAGE):
        assert folder.removeprefix("k8s/overlays/") in RENDERED, folder
