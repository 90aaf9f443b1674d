"""What makes an emulated cluster move: Deployment -> ReplicaSet -> Pod, a kubelet that can fail, disruption budgets."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass, field
from typing import Any, Literal

from emulated_api.store import Key, Object, Store, now_text, selects

#: What befalls the pods of a release.
Fault = Literal["image", "crash", "init", "unschedulable", "never_ready"]
BAD_IMAGE = "no-such-image"
HASH = "pod-template-hash"

FAULTY: dict[Fault, Object] = {
    "image": {
        "containerStatuses": [
            {
                "name": "triton",
                "image": BAD_IMAGE,
                "state": {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}},
            }
        ]
    },
    "crash": {
        "containerStatuses": [
            {
                "name": "triton",
                "restartCount": 2,
                "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 20s restarting"}},
                "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}},
            }
        ]
    },
    "init": {
        "initContainerStatuses": [
            {
                "name": "pull-release",
                "restartCount": 1,
                "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": {"exitCode": 1, "reason": "Error", "message": "the store has no release"}},
            }
        ]
    },
    "unschedulable": {
        "conditions": [
            {
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": "0/3 nodes are available: 3 Insufficient cpu.",
            }
        ]
    },
    "never_ready": {"conditions": [{"type": "Ready", "status": "False"}]},
}


@dataclass
class Controllers:
    """Steps through the store. faults: release -> what befalls its pods; ready_s, leave_s: how long pods take."""

    store: Store
    faults: dict[str, Fault] = field(default_factory=dict)
    ready_s: float = 0.05
    leave_s: float = 0.05
    paused: bool = False
    _born: dict[str, float] = field(default_factory=dict)
    _moved: dict[str, tuple[object, float]] = field(default_factory=dict)
    _count: int = 0

    def step(self) -> None:
        if self.paused:
            return
        for deployment in self.store.items("deployments"):
            self._roll(deployment)
        for pod in self.store.items("pods"):
            self._advance(pod)
        for deployment in self.store.items("deployments"):
            self._report(deployment)

    def allows_eviction(self, pod: Object) -> bool:
        for budget in self.store.items("poddisruptionbudgets"):
            wanted = budget["spec"]["selector"]["matchLabels"]
            if not selects(wanted, pod) or budget["metadata"]["namespace"] != pod["metadata"]["namespace"]:
                continue
            all_pods = [p for p in self._pods(pod["metadata"]["namespace"]) if selects(wanted, p)]
            expected = sum(
                d["spec"].get("replicas", 1)
                for d in self.store.items("deployments")
                if selects(wanted, d["spec"]["template"])
            )
            least = budget["spec"].get("minAvailable", expected - budget["spec"].get("maxUnavailable", 0))
            if sum(map(is_ready, all_pods)) - is_ready(pod) < least:
                return False
        return True

    def remove_pod(self, pod: Object) -> None:
        if "deletionTimestamp" not in pod["metadata"]:
            pod["metadata"]["deletionTimestamp"] = now_text()
            self._born[pod["metadata"]["uid"]] = time.monotonic()
            self.store.put(_key(pod, "pods"), pod)

    def _roll(self, deployment: Object) -> None:
        spec, namespace = deployment["spec"], deployment["metadata"]["namespace"]
        wanted, mark = spec.get("replicas", 1), _hash(spec["template"])
        alive = self._alive(deployment)
        new = [p for p in alive if p["metadata"]["labels"][HASH] == mark]
        old = [p for p in alive if p["metadata"]["labels"][HASH] != mark]
        self._replica_set(deployment, mark, len(new))
        if len(new) < wanted and len(alive) < wanted + 1:  # maxSurge 1
            self._make_pod(deployment, mark, namespace)
        ready = sum(map(is_ready, alive))
        for pod in sorted(new, key=is_ready)[: max(0, len(new) - wanted)]:
            self.remove_pod(pod)
        for pod in sorted(old, key=is_ready):  # maxUnavailable 0
            if not is_ready(pod) or ready - 1 >= wanted:
                ready -= is_ready(pod)
                self.remove_pod(pod)

    def _advance(self, pod: Object) -> None:
        age = time.monotonic() - self._born.setdefault(pod["metadata"]["uid"], time.monotonic())
        if "deletionTimestamp" in pod["metadata"]:
            if age >= self.leave_s:
                self.store.remove(_key(pod, "pods"))
            return
        if age < self.ready_s or pod["status"] != {"phase": "Pending"}:
            return
        fault = self.faults.get(pod["metadata"]["labels"].get("cmt/release", ""))
        if any(BAD_IMAGE in c["image"] for c in pod["spec"]["containers"]):
            fault = "image"
        if fault:
            pod["status"] = {"phase": "Pending", **json.loads(json.dumps(FAULTY[fault]))}
        else:
            self._count += 1
            ready = {"type": "Ready", "status": "True"}
            pod["status"] = {"phase": "Running", "podIP": f"10.0.0.{self._count}", "conditions": [ready]}
        self.store.put(_key(pod, "pods"), pod)

    def _report(self, deployment: Object) -> None:
        spec, alive = deployment["spec"], self._alive(deployment)
        new = [p for p in alive if p["metadata"]["labels"][HASH] == _hash(spec["template"])]
        ready = sum(map(is_ready, alive))
        complete = len(new) == len(alive) == ready == spec.get("replicas", 1)
        state = (deployment["metadata"]["generation"], len(new), ready, len(alive))
        last, since = self._moved.get(deployment["metadata"]["uid"], (None, 0.0))
        if state != last or complete:
            self._moved[deployment["metadata"]["uid"]] = (state, time.monotonic())
            since = time.monotonic()
        late = time.monotonic() - since > spec.get("progressDeadlineSeconds", 600)
        reason = "NewReplicaSetAvailable" if complete else "ProgressDeadlineExceeded" if late else "ReplicaSetUpdated"
        status = {
            "observedGeneration": deployment["metadata"]["generation"],
            "replicas": len(alive),
            "updatedReplicas": len(new),
            "readyReplicas": ready,
            "availableReplicas": ready,
            "conditions": [{"type": "Progressing", "status": str(not late), "reason": reason, "message": reason}],
        }
        if deployment.get("status") != status:
            deployment["status"] = status
            self.store.put(_key(deployment, "deployments"), deployment)

    def _alive(self, deployment: Object) -> list[Object]:
        wanted = deployment["spec"]["selector"]["matchLabels"]
        pods = self._pods(deployment["metadata"]["namespace"])
        return [p for p in pods if selects(wanted, p) and "deletionTimestamp" not in p["metadata"]]

    def _pods(self, namespace: str) -> list[Object]:
        return [pod for pod in self.store.items("pods") if pod["metadata"]["namespace"] == namespace]

    def _replica_set(self, deployment: Object, mark: str, count: int) -> None:
        name, namespace = f"{deployment['metadata']['name']}-{mark}", deployment["metadata"]["namespace"]
        there = self.store.get(("replicasets", namespace, name))
        if there is None or there["spec"]["replicas"] != count:
            item = there or {"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {}, "spec": {}}
            item["metadata"].update(name=name, namespace=namespace)
            item["spec"].update(replicas=count, template=deployment["spec"]["template"])
            self.store.put(("replicasets", namespace, name), item)

    def _make_pod(self, deployment: Object, mark: str, namespace: str) -> None:
        self._count += 1
        template = json.loads(json.dumps(deployment["spec"]["template"]))
        name = f"{deployment['metadata']['name']}-{mark}-{self._count}"
        template["metadata"].update(name=name, namespace=namespace)
        template["metadata"].setdefault("labels", {})[HASH] = mark
        pod: dict[str, Any] = {"apiVersion": "v1", "kind": "Pod", **template, "status": {"phase": "Pending"}}
        self.store.put(("pods", namespace, name), pod)


def is_ready(pod: Object) -> bool:
    conditions = pod.get("status", {}).get("conditions", ())
    return {"type": "Ready", "status": "True"} in conditions and "deletionTimestamp" not in pod["metadata"]


def _hash(template: Object) -> str:
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:8]


def _key(item: Object, plural: str) -> Key:
    return plural, item["metadata"]["namespace"], item["metadata"]["name"]
