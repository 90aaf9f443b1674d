"""What a kubelet and the scheduler make of pods: they get ready, or fail in the ways that nodes know.

Statuses are those of the real kubelet (pkg/kubelet): an ended container's message is the file /dev/termination-log,
which these containers don't write, or the tail of its log, only where its terminationMessagePolicy is
FallbackToLogsOnError. What a kubelet can't say in a status is an Event.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

from emulated_api.store import Key, Object, Store, now_text

#: What befalls the pods of a release.
Fault = Literal["image", "crash", "init", "unschedulable", "gated", "never_ready", "mount", "evicted"]
BAD_IMAGE = "no-such-image"
#: The kubelet keeps so much of a log (pkg/kubelet/kuberuntime: MaxContainerTerminationMessageLogLength).
LOG_BYTES, LOG_LINES = 2048, 80
LOGS = {
    "triton": "loading stages\nServerError: encode_text doesn't load: out of memory\n",
    "pull-release": "pulling release 3 from /store\nStoreError: release 3 came; /store holds 1, 2\n",
}
ROOM = "0/3 nodes are available: 3 Insufficient cpu."
PRESSURE = "The node was low on resource: ephemeral-storage. Threshold quantity: 10Gi, available: 9Gi."

#: Faults that no status shows: reason and message of the event.
EVENTS: dict[Fault, tuple[str, str]] = {
    "never_ready": ("Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 400"),
    "mount": ("FailedMount", 'MountVolume.SetUp failed for volume "store" : configmap "cmt-store" not found'),
}


def status_of(fault: Fault | None, spec: Object, ip: str) -> Object:
    """The status that a pod comes to. spec: its own, with defaults."""
    if fault is None:
        return _running(spec, ip, ready=True)
    if fault == "never_ready":
        return _running(spec, ip, ready=False)
    if fault == "evicted":
        return {"phase": "Failed", "reason": "Evicted", "message": PRESSURE}
    if fault in ("unschedulable", "gated"):
        reason, message = ("Unschedulable", ROOM) if fault == "unschedulable" else ("SchedulingGated", "not yet")
        condition = {"type": "PodScheduled", "status": "False", "reason": reason, "message": message}
        return {"phase": "Pending", "conditions": [condition]}
    return {"phase": "Pending", **_waiting(fault, spec)}


def _running(spec: Object, ip: str, ready: bool) -> Object:
    names = [container["name"] for container in spec["containers"]]
    unready = {} if ready else {"reason": "ContainersNotReady", "message": f"containers with unready status: {names}"}
    return {
        "phase": "Running",
        "podIP": ip,
        "conditions": [{"type": "Ready", "status": str(ready), "lastTransitionTime": now_text(), **unready}],
        "containerStatuses": [{"name": n, "ready": ready, "restartCount": 0, "state": {"running": {}}} for n in names],
    }


def _waiting(fault: Fault, spec: Object) -> Object:
    kind = "initContainer" if fault == "init" else "container"
    container = spec[f"{kind}s"][0]
    state: dict[str, Any] = {"name": container["name"], "image": container["image"], "ready": False, "restartCount": 0}
    if fault == "image":
        state["state"] = {"waiting": {"reason": "ImagePullBackOff", "message": f'Back-off pulling image "{BAD_IMAGE}"'}}
    elif fault == "mount":
        state["state"] = {"waiting": {"reason": "ContainerCreating"}}
    else:
        message = f"back-off 20s restarting failed container={container['name']}"
        state["restartCount"] = 2
        state["state"] = {"waiting": {"reason": "CrashLoopBackOff", "message": message}}
        ended = {"exitCode": 137, "reason": "OOMKilled"} if fault == "crash" else {"exitCode": 1, "reason": "Error"}
        state["lastState"] = {"terminated": {**ended, **_termination_message(container)}}
    return {f"{kind}Statuses": [state]}


def _termination_message(container: Object) -> Object:
    if container.get("terminationMessagePolicy") != "FallbackToLogsOnError":
        return {}
    log = LOGS[container["name"]]
    return {"message": "\n".join(log[-LOG_BYTES:].split("\n")[-LOG_LINES:])}


class Kubelet:
    """Of all nodes. faults: release -> what befalls its pods; ready_s, leave_s: how long pods take."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.faults: dict[str, Fault] = {}
        self.ready_s = self.leave_s = 0.05
        self._born: dict[str, float] = {}
        self._count = 0

    def step(self, now_s: float) -> None:
        for pod in self._store.items("pods"):
            self._advance(pod, now_s)

    def remove(self, pod: Object, now_s: float) -> None:
        """Its grace period begins. One that is over already goes at once."""
        if pod["status"].get("phase") in ("Failed", "Succeeded"):
            self._store.remove(key_of(pod))
        elif "deletionTimestamp" not in pod["metadata"]:
            pod["metadata"]["deletionTimestamp"] = now_text()
            self._born[pod["metadata"]["uid"]] = now_s
            self._store.put(key_of(pod), pod)

    def evict(self, pod: Object) -> None:
        """For want of the node's disk: its object stays, its work is over."""
        pod["status"] = status_of("evicted", pod["spec"], "")
        self._store.put(key_of(pod), pod)

    def _advance(self, pod: Object, now_s: float) -> None:
        age_s = now_s - self._born.setdefault(pod["metadata"]["uid"], now_s)
        if "deletionTimestamp" in pod["metadata"]:
            if age_s >= self.leave_s:
                self._store.remove(key_of(pod))
            return
        if age_s < self.ready_s or pod["status"] != {"phase": "Pending"}:
            return
        fault = self.faults.get(release_of(pod))
        if any(BAD_IMAGE in container["image"] for container in pod["spec"]["containers"]):
            fault = "image"
        self._count += 1
        pod["status"] = copy.deepcopy(status_of(fault, pod["spec"], f"10.0.0.{self._count}"))
        self._store.put(key_of(pod), pod)
        if fault in EVENTS:
            tell(self._store, pod, *EVENTS[fault])


def tell(store: Store, item: Object, reason: str, message: str) -> None:
    """A Warning event about an object."""
    metadata = item["metadata"]
    name, namespace = f"{metadata['name']}.{reason.lower()}", metadata["namespace"]
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": namespace},
        "involvedObject": {"kind": item["kind"], "name": metadata["name"], "uid": metadata.get("uid", "")},
        "type": "Warning",
        "reason": reason,
        "message": message,
        "lastTimestamp": now_text(),
    }
    store.put(("events", namespace, name), event)


def key_of(pod: Object) -> Key:
    return "pods", pod["metadata"]["namespace"], pod["metadata"]["name"]


def is_ready(pod: Object) -> bool:
    conditions = pod.get("status", {}).get("conditions", ())
    ready = any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
    return ready and "deletionTimestamp" not in pod["metadata"]


def release_of(pod: Object) -> str:
    """What runs in it: what its server is told, whatever its label says."""
    for container in pod["spec"]["containers"]:
        for variable in container.get("env", ()):
            if variable["name"] == "CMT_RELEASE":
                return str(variable.get("value", ""))
    return ""
