"""What the manifests in `k8s/base` and the driver of upgrades agree on, and the settings of that driver."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from cmt_pipeline.constants import RELEASE_VARIABLE

#: A Kubernetes object as its JSON says it.
Object = dict[str, Any]

NAMESPACE = "cmt"
STABLE, CANARY = "cmt-triton", "cmt-triton-canary"
CONTAINER, INIT_CONTAINER = "triton", "pull-release"
LEASE = "cmt-rollout"

#: Chooses the release, in both containers.
#: Labels of pods. Services send requests to those with TRAFFIC alone.
RELEASE, TRACK, TRAFFIC = "cmt/release", "cmt/track", "cmt/traffic"
TRAFFIC_YES = "yes"
#: Annotation of the stable Deployment: the release that it served before.
PREVIOUS = "cmt/previous-release"
#: Annotation of both Deployments: the driver that may change them.
DRIVER = "cmt/driver"

#: Field managers: of what an upgrade changes, of all that `cmt deploy` applies beside it, of a driver's signature, and
#: of the replicas of a Deployment whose manifests leave them to an autoscaler.
ROLLOUT_MANAGER, DEPLOY_MANAGER, SIGNATURE_MANAGER = "cmt-rollout", "cmt-deploy", "cmt-lease"
REPLICAS_MANAGER = "cmt-replicas"


@dataclass(frozen=True)
class ClusterOptions:
    """How the driver deals with a cluster.

    canary_share: of the stable replicas, rounded up, that run the release on trial; ready_timeout_s: for pods of one
    rollout to get ready; fault_grace_s: how long one and the same fault of pods is borne (a registry's hiccup, a
    restart); lease_s: after so long without a sign of life another driver may take over; tick_s: pods are looked at
    again at least so often; force_conflicts: take fields over from other field managers.
    """

    canary_share: float = 0.1
    ready_timeout_s: float = 900.0
    fault_grace_s: float = 60.0
    lease_s: int = 30
    tick_s: int = 5
    force_conflicts: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.canary_share <= 1:
            raise ValueError(f"canary_share: got {self.canary_share}; expected a share from 0 to 1")
        for name in ("ready_timeout_s", "fault_grace_s", "lease_s", "tick_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: got {getattr(self, name)}; expected seconds above 0")

    def canaries(self, replicas: int) -> int:
        """How many pods a release is tried on."""
        return max(1, math.ceil(self.canary_share * replicas))


def release_of(deployment: Object) -> int | None:
    """The release that a Deployment's pod template chooses; None if it names none."""
    return chosen_release(deployment["spec"]["template"])


def chosen_release(pod: Object, kind: str = "containers", container: str = CONTAINER) -> int | None:
    """The release that a container of a pod, or of a template, is told; None if it is told none."""
    for each in pod.get("spec", {}).get(kind) or ():
        if each["name"] == container:
            values = [e.get("value", "") for e in each.get("env", ()) if e["name"] == RELEASE_VARIABLE]
            return int(values[0]) if values and values[0].isdigit() else None
    return None


def disagreement(deployment: Object) -> str:
    """Where a Deployment's template says more than one release, what it says; "" where it says one."""
    template = deployment["spec"]["template"]
    label = template.get("metadata", {}).get("labels", {}).get(RELEASE)
    said = {
        f"{CONTAINER} serves": chosen_release(template),
        f"{INIT_CONTAINER} pulls": chosen_release(template, "initContainers", INIT_CONTAINER),
        "the label says": int(label) if label and label.isdigit() else None,
    }
    if len({number for number in said.values() if number is not None}) < 2:
        return ""
    told = ", ".join(f"{who} {number}" for who, number in said.items() if number is not None)
    return f"of {deployment['metadata']['name']} {told}: somebody changed {RELEASE_VARIABLE} or the label by hand"


def previous_of(deployment: Object) -> int | None:
    """The release that the stable Deployment served before, if that is known."""
    value = deployment["metadata"].get("annotations", {}).get(PREVIOUS, "")
    return int(value) if value.isdigit() else None


def replicas_fields(deployment: Object, replicas: int | None) -> Object:
    """What REPLICAS_MANAGER applies to a Deployment; None gives the count up to whoever shares it."""
    spec = {} if replicas is None else {"spec": {"replicas": replicas}}
    metadata = {"name": deployment["metadata"]["name"]}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, **spec}


def owns(deployment: Object, manager: str) -> bool:
    """Whether a manager has applied fields of a Deployment that are still its own."""
    managed = deployment["metadata"].get("managedFields", ())
    return any(entry["manager"] == manager and entry.get("operation") == "Apply" for entry in managed)


def release_fields(
    deployment: Object, release: int | None, *, previous: int | None = None, replicas: int | None = None
) -> Object:
    """All that an upgrade owns of a Deployment, for server-side apply under ROLLOUT_MANAGER.

    Applied as a whole each time: what is left out is released. Containers that the Deployment hasn't aren't added.
    """
    spec: Object = {} if replicas is None else {"replicas": replicas}
    if release is not None:
        chosen = [{"name": RELEASE_VARIABLE, "value": str(release)}]
        pod: Object = {}
        for kind, name in (("containers", CONTAINER), ("initContainers", INIT_CONTAINER)):
            if any(c["name"] == name for c in deployment["spec"]["template"]["spec"].get(kind) or ()):
                pod[kind] = [{"name": name, "env": chosen}]
        spec["template"] = {"metadata": {"labels": {RELEASE: str(release)}}, "spec": pod}
    metadata: Object = {"name": deployment["metadata"]["name"]}
    if previous is not None:
        metadata["annotations"] = {PREVIOUS: str(previous)}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}
