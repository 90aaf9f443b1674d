"""Pods, and what keeps them from getting ready, in words."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cmt_rollout.errors import ClusterError, Stuck
from cmt_rollout.kubernetes.cluster import Cluster
from cmt_rollout.kubernetes.layout import RELEASE, ClusterOptions, Object

#: Waiting reasons of the kubelet -> what they mean; others (ContainerCreating, PodInitializing) are no faults.
WAITING = {
    "ErrImagePull": "its image {image} can't be pulled",
    "ImagePullBackOff": "its image {image} can't be pulled",
    "ErrImageNeverPull": "its image {image} isn't on the node and may not be pulled",
    "InvalidImageName": "{image} is no image name",
    "CreateContainerConfigError": "its configuration is incomplete",
    "CreateContainerError": "it can't be created",
    "RunContainerError": "it can't be started",
    "CrashLoopBackOff": "it ends as often as it is started",
}
#: A container that was started again so often and still isn't ready won't be.
RESTARTS = 3


@dataclass(frozen=True)
class Pod:
    """A pod as far as an upgrade cares. fault: what keeps it from getting ready."""

    name: str
    uid: str
    ip: str
    release: str
    ready: bool
    leaving: bool
    labels: dict[str, str]
    fault: str
    waits_for_room: bool

    @classmethod
    def of(cls, item: Object) -> Pod:
        metadata, status = item["metadata"], item.get("status", {})
        conditions = {c["type"]: c for c in status.get("conditions", ())}
        unscheduled = conditions.get("PodScheduled", {}).get("reason") == "Unschedulable"
        return cls(
            name=metadata["name"],
            uid=metadata.get("uid", ""),
            ip=status.get("podIP", ""),
            release=metadata.get("labels", {}).get(RELEASE, ""),
            ready=conditions.get("Ready", {}).get("status") == "True" and "deletionTimestamp" not in metadata,
            leaving="deletionTimestamp" in metadata,
            labels=metadata.get("labels", {}),
            fault=f"no node has room for it ({conditions['PodScheduled'].get('message', '')})"
            if unscheduled
            else _fault(status),
            waits_for_room=unscheduled,
        )


@dataclass(frozen=True)
class Progress:
    """How far a Deployment has come. rolling: pods of an older template are still among its own."""

    wanted: int
    updated: int
    available: int
    total: int
    seen: bool
    overdue: str

    @classmethod
    def of(cls, deployment: Object) -> Progress:
        status = deployment.get("status", {})
        late = [c for c in status.get("conditions", ()) if c.get("reason") == "ProgressDeadlineExceeded"]
        return cls(
            wanted=deployment["spec"].get("replicas", 1),
            updated=status.get("updatedReplicas", 0),
            available=status.get("availableReplicas", 0),
            total=status.get("replicas", 0),
            seen=status.get("observedGeneration", 0) >= deployment["metadata"].get("generation", 0),
            overdue=late[0].get("message", "its progress deadline is over") if late else "",
        )

    @property
    def rolling(self) -> bool:
        return not self.seen or self.updated < self.wanted or self.total > self.updated

    @property
    def complete(self) -> bool:
        return not self.rolling and self.available >= self.wanted

    def __str__(self) -> str:
        old = f", {self.total - self.updated} of the old to go" if self.total > self.updated else ""
        return f"{self.available} of {self.wanted} pods available, {self.updated} of them new{old}"


def pods_of(cluster: Cluster, labels: dict[str, str]) -> list[Pod]:
    """Pods with these labels, oldest first."""
    selector = ",".join(f"{key}={value}" for key, value in labels.items())
    listed = cluster.request("GET", cluster.path("pods"), query=[("labelSelector", selector)])["items"]
    listed.sort(key=lambda item: (item["metadata"].get("creationTimestamp", ""), item["metadata"]["name"]))
    return [Pod.of(item) for item in listed]


def wait_for_rollout(cluster: Cluster, name: str, options: ClusterOptions, say: Callable[[str], None]) -> None:
    """Back when all pods of a Deployment are of its template and available. Raises Stuck with what keeps them."""
    deadline = time.monotonic() + options.ready_timeout_s
    faults = _Faults(options.fault_grace_s)
    for deployment in cluster.follow(cluster.path("deployments", group="apps/v1"), name, options.tick_s):
        progress = Progress.of(deployment)
        if progress.complete:
            return
        template = deployment["spec"]["template"]["metadata"].get("labels", {})
        pods = pods_of(cluster, {**deployment["spec"]["selector"]["matchLabels"], **_release(template)})
        say(
            f"{name}: {progress}"
            + "".join(f"; {message}" for message in sorted({_message_of(pod) for pod in pods if pod.fault}))
        )
        if lasting := faults.lasting(pods):
            raise Stuck(f"{name}: {lasting} ({progress})")
        if progress.overdue and progress.seen:
            raise Stuck(f"{name}: {progress.overdue} ({progress}){_first_fault(pods)}")
        if time.monotonic() > deadline:
            raise Stuck(f"{name}: not there after {options.ready_timeout_s:g} s ({progress}){_first_fault(pods)}")
    raise ClusterError(f"{name} can't be followed")


class _Faults:
    """Remembers since when a pod has had its fault: a registry's hiccup passes, a wrong image doesn't."""

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._since: dict[str, float] = {}

    def lasting(self, pods: Sequence[Pod]) -> str:
        """The first fault that has lasted; a pod without room isn't counted, for a node may be on its way."""
        now = time.monotonic()
        faulty = {pod.uid: pod for pod in pods if pod.fault and not pod.waits_for_room and not pod.leaving}
        self._since = {uid: self._since.get(uid, now) for uid in faulty}
        messages = [_message_of(faulty[uid]) for uid, since in self._since.items() if now - since >= self._grace_s]
        return messages[0] if messages else ""


def _message_of(pod: Pod) -> str:
    return f"pod {pod.name}: {pod.fault}"


def _first_fault(pods: Sequence[Pod]) -> str:
    messages = [_message_of(pod) for pod in pods if pod.fault]
    return f"; {messages[0]}" if messages else ""


def _release(labels: dict[str, str]) -> dict[str, str]:
    return {RELEASE: labels[RELEASE]} if RELEASE in labels else {}


def _fault(status: Object) -> str:
    if status.get("phase") == "Failed":  # its ReplicaSet has put another in its place
        return ""
    for kind, word in (("initContainerStatuses", "init container"), ("containerStatuses", "container")):
        for container in status.get(kind, ()):
            if fault := _container_fault(container):
                return f"{word} {container['name']}: {fault}"
    return ""


def _container_fault(container: Object) -> str:
    waiting = container.get("state", {}).get("waiting", {})
    ended = container.get("state", {}).get("terminated") or container.get("lastState", {}).get("terminated") or {}
    last = f"; last with exit code {ended['exitCode']}, {ended.get('reason', '')}" if ended.get("exitCode") else ""
    message = ended.get("message", "").strip() or waiting.get("message", "")
    if waiting.get("reason") in WAITING:
        meaning = WAITING[waiting["reason"]].format(image=container.get("image", "?"))
        return f"{meaning} ({waiting['reason']}{last}{f': {message}' if message else ''})"
    if last and (container.get("state", {}).get("terminated") or container.get("restartCount", 0) >= RESTARTS):
        return f"it fails{last}{f': {message}' if message else ''}" if not container.get("ready") else ""
    return ""
