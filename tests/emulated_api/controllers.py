"""What makes an emulated cluster move: Deployment -> ReplicaSet -> Pod, disruption budgets, autoscalers.

As kube-controller-manager's (pkg/controller/deployment, replicaset, podautoscaler): rolling updates by maxSurge and
maxUnavailable, of pods that were ready for minReadySeconds; none while `paused`; a pod that may not be created is a
ReplicaFailure of its ReplicaSet, which its Deployment repeats; one that has failed is replaced and stays to be seen.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from emulated_api.admission import admit
from emulated_api.kubelet import Kubelet, is_ready, key_of, tell
from emulated_api.ownership import Manager, updated
from emulated_api.requests import Refused
from emulated_api.store import Key, Object, Store, selects

HASH = "pod-template-hash"
AUTOSCALER: Manager = ("kube-controller-manager", "Update")


@dataclass
class Controllers:
    """Steps through the store. demand: HorizontalPodAutoscaler -> how many pods its metrics ask for."""

    store: Store
    kubelet: Kubelet
    webhooks: dict[str, Callable[[Object], str]] = field(default_factory=dict)
    demand: dict[str, int] = field(default_factory=dict)
    paused: bool = False
    _ready_since: dict[str, float] = field(default_factory=dict)
    _moved: dict[str, tuple[object, float]] = field(default_factory=dict)
    _templates: dict[str, Object] = field(default_factory=dict)
    _failures: dict[str, str] = field(default_factory=dict)
    _count: int = 0

    def step(self) -> None:
        if self.paused:
            return
        for scaler in self.store.items("horizontalpodautoscalers"):
            self._autoscale(scaler)
        for deployment in self.store.items("deployments"):
            self._roll(deployment)
        self.kubelet.step(time.monotonic())
        for deployment in self.store.items("deployments"):
            self._report(deployment)

    def allows_eviction(self, pod: Object) -> bool:
        for budget in self.store.items("poddisruptionbudgets"):
            wanted = budget["spec"]["selector"]["matchLabels"]
            if not selects(wanted, pod) or budget["metadata"]["namespace"] != pod["metadata"]["namespace"]:
                continue
            all_pods = [p for p in self._pods(pod["metadata"]["namespace"]) if selects(wanted, p)]
            expected = sum(
                d["spec"]["replicas"] for d in self.store.items("deployments") if selects(wanted, d["spec"]["template"])
            )
            least = budget["spec"].get("minAvailable", expected - budget["spec"].get("maxUnavailable", 0))
            if sum(map(is_ready, all_pods)) - is_ready(pod) < least:
                return False
        return True

    def remove_pod(self, pod: Object) -> None:
        self.kubelet.remove(pod, time.monotonic())

    def scale(self, key: Key, replicas: int, manager: Manager) -> None:
        """By the subresource `scale`: the count is then that manager's alone."""
        before = self.store.get(key)
        assert before is not None
        after = {**before, "spec": {**before["spec"], "replicas": replicas}}
        if after != before:
            self.store.owners[key] = updated(before, after, self.store.owners.get(key, {}), manager)
            self.store.put(key, after)

    def _autoscale(self, scaler: Object) -> None:
        """Within its bounds even where no metric is to be had, as the real one."""
        spec, metadata = scaler["spec"], scaler["metadata"]
        key = ("deployments", metadata["namespace"], spec["scaleTargetRef"]["name"])
        target = self.store.get(key)
        if target is not None and (now := target["spec"]["replicas"]) > 0:
            wanted = self.demand.get(metadata["name"], now)
            self.scale(key, max(spec["minReplicas"], min(spec["maxReplicas"], wanted)), AUTOSCALER)

    def _roll(self, deployment: Object) -> None:
        spec, uid = deployment["spec"], deployment["metadata"]["uid"]
        template = self._templates.get(uid, spec["template"]) if spec.get("paused") else spec["template"]
        self._templates[uid] = template
        wanted, mark, alive = spec["replicas"], _hash(template), self._alive(deployment)
        new = [p for p in alive if p["metadata"]["labels"][HASH] == mark]
        old = [p for p in alive if p["metadata"]["labels"][HASH] != mark]
        surge, unavailable = _bounds(spec)
        failure = ""
        if len(new) < wanted and len(alive) < wanted + (surge if old else 0):
            failure = self._make_pod(deployment, template, mark)
        self._failures[uid] = failure
        self._replica_set(deployment, template, mark, len(new), failure)
        for pod in sorted(new, key=is_ready)[: max(0, len(new) - wanted)]:
            self.remove_pod(pod)
        if spec.get("paused"):
            return
        available = sum(map(self._is_available(spec), alive))
        for pod in sorted(old, key=is_ready):
            if not is_ready(pod) or available - 1 >= wanted - unavailable:
                available -= self._is_available(spec)(pod)
                self.remove_pod(pod)

    def _report(self, deployment: Object) -> None:
        spec, alive, uid = deployment["spec"], self._alive(deployment), deployment["metadata"]["uid"]
        new = [p for p in alive if p["metadata"]["labels"][HASH] == _hash(spec["template"])]
        available = sum(map(self._is_available(spec), alive))
        complete = len(new) == len(alive) == available == spec["replicas"]
        state = (deployment["metadata"]["generation"], len(new), available, len(alive))
        last, since = self._moved.get(uid, (None, 0.0))
        if state != last or complete:
            self._moved[uid] = (state, time.monotonic())
            since = time.monotonic()
        late = time.monotonic() - since > spec["progressDeadlineSeconds"]
        reason = "NewReplicaSetAvailable" if complete else "ProgressDeadlineExceeded" if late else "ReplicaSetUpdated"
        replica_set = f'ReplicaSet "{deployment["metadata"]["name"]}-{_hash(spec["template"])}"'
        message = f"{replica_set} has timed out progressing." if late else f"{replica_set} is progressing."
        progressing = {"type": "Progressing", "status": str(not late), "reason": reason, "message": message}
        if spec.get("paused"):
            progressing = {"type": "Progressing", "status": "Unknown", "reason": "DeploymentPaused"}
        conditions = [progressing]
        if failure := self._failures.get(uid):
            conditions.append(
                {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": failure}
            )
        status = {
            "observedGeneration": deployment["metadata"]["generation"],
            "replicas": len(alive),
            "updatedReplicas": len(new),
            "readyReplicas": sum(map(is_ready, alive)),
            "availableReplicas": available,
            "conditions": conditions,
        }
        if deployment.get("status") != status:
            deployment["status"] = status
            key = ("deployments", deployment["metadata"]["namespace"], deployment["metadata"]["name"])
            self.store.put(key, deployment)

    def _is_available(self, spec: Object) -> Callable[[Object], bool]:
        """Whether a pod has been ready for minReadySeconds."""
        now_s = time.monotonic()

        def check(pod: Object) -> bool:
            uid = pod["metadata"]["uid"]
            if not is_ready(pod):
                self._ready_since.pop(uid, None)
                return False
            return now_s - self._ready_since.setdefault(uid, now_s) >= spec.get("minReadySeconds", 0)

        return check

    def _alive(self, deployment: Object) -> list[Object]:
        wanted = deployment["spec"]["selector"]["matchLabels"]
        pods = self._pods(deployment["metadata"]["namespace"])
        return [p for p in pods if selects(wanted, p) and _is_active(p) and HASH in p["metadata"]["labels"]]

    def _pods(self, namespace: str) -> list[Object]:
        return [pod for pod in self.store.items("pods") if pod["metadata"]["namespace"] == namespace]

    def _replica_set(self, deployment: Object, template: Object, mark: str, count: int, failure: str) -> None:
        name, namespace = f"{deployment['metadata']['name']}-{mark}", deployment["metadata"]["namespace"]
        there = self.store.get(("replicasets", namespace, name))
        conditions = [{"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": failure}]
        status = {"replicas": count, "conditions": conditions if failure else []}
        if there is None or there["status"] != status:
            item: Object = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "status": status}
            item["metadata"] = {**(there or {}).get("metadata", {}), "name": name, "namespace": namespace}
            item["spec"] = {"replicas": count, "template": template}
            item = self.store.put(("replicasets", namespace, name), item)
            if failure:
                tell(self.store, item, "FailedCreate", f"Error creating: {failure}")

    def _make_pod(self, deployment: Object, template: Object, mark: str) -> str:
        """Why it may not be created; "" where it is."""
        self._count += 1
        made = json.loads(json.dumps(template))
        namespace, name = deployment["metadata"]["namespace"], f"{deployment['metadata']['name']}-{mark}-{self._count}"
        made["metadata"].update(name=name, namespace=namespace)
        made["metadata"].setdefault("labels", {})[HASH] = mark
        pod: dict[str, Any] = {"apiVersion": "v1", "kind": "Pod", **made, "status": {"phase": "Pending"}}
        try:
            admit(self.store, self.webhooks, pod, namespace)
        except Refused as refused:
            return str(refused)
        self.store.put(key_of(pod), pod)
        return ""


def _is_active(pod: Object) -> bool:
    return pod["status"].get("phase") not in ("Failed", "Succeeded") and "deletionTimestamp" not in pod["metadata"]


def _bounds(spec: Object) -> tuple[int, int]:
    """maxSurge, rounded up, and maxUnavailable, rounded down; never both 0."""
    rolling, wanted = spec["strategy"].get("rollingUpdate", {}), spec["replicas"]

    def number(value: str | int, rounded: Callable[[float], int]) -> int:
        return rounded(wanted * int(value[:-1]) / 100) if isinstance(value, str) else value

    surge = number(rolling.get("maxSurge", 0), math.ceil)
    unavailable = number(rolling.get("maxUnavailable", 0), math.floor)
    return surge, unavailable if surge or unavailable else 1


def _hash(template: Object) -> str:
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:8]
