"""Pods, and what keeps them from getting ready, in words."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cmt_rollout.errors import ClusterError, Stuck
from cmt_rollout.kubernetes.cluster import Cluster
from cmt_rollout.kubernetes.layout import RELEASE, ClusterOptions, Object, chosen_release

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
#: A container that was started again so often and still isn't ready won't be; nor will pods of which so many failed.
RESTARTS = 3
#: Of what a container said last: the end of it.
LAST_LINES, LAST_CHARACTERS = 3, 400
WAITING_PODS = ("Unschedulable", "SchedulingGated")


@dataclass(frozen=True)
class Pod:
    """A pod as far as an upgrade cares.

    release: what its server was told to serve, whatever its label says; fault: what keeps it from getting ready; over:
    it has ended for good (evicted, refused by its node) and another was put in its place.
    """

    name: str
    uid: str
    ip: str
    release: str
    ready: bool
    leaving: bool
    labels: dict[str, str]
    fault: str
    waits_for_room: bool
    over: bool = False

    @classmethod
    def of(cls, item: Object) -> Pod:
        metadata, status = item["metadata"], item.get("status", {})
        conditions = {c["type"]: c for c in status.get("conditions", ())}
        chosen, labels = chosen_release(item), metadata.get("labels", {})
        unscheduled = conditions.get("PodScheduled", {}).get("reason") in WAITING_PODS
        return cls(
            name=metadata["name"],
            uid=metadata.get("uid", ""),
            ip=status.get("podIP", ""),
            release=labels.get(RELEASE, "") if chosen is None else str(chosen),
            ready=conditions.get("Ready", {}).get("status") == "True" and "deletionTimestamp" not in metadata,
            leaving="deletionTimestamp" in metadata,
            labels=labels,
            fault=_unscheduled(conditions["PodScheduled"]) if unscheduled else _fault(status),
            waits_for_room=unscheduled,
            over=status.get("phase") in ("Failed", "Succeeded"),
        )


@dataclass(frozen=True)
class Progress:
    """How far a Deployment has come.

    held: why no pod of it can be made (a quota, pod security, a webhook) or replaced (it is paused); rolling: pods of
    an older template are still among its own.
    """

    wanted: int
    updated: int
    available: int
    total: int
    seen: bool
    overdue: str
    held: str = ""

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
            held=paused(deployment) or _refused(status),
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


def paused(deployment: Object) -> str:
    """That a Deployment's pods aren't replaced, and how to mend it; "" where they are."""
    if not deployment["spec"].get("paused"):
        return ""
    metadata = deployment["metadata"]
    place = f" -n {metadata['namespace']}" if "namespace" in metadata else ""
    return f"it is paused; `kubectl rollout resume deployment/{metadata['name']}{place}` lets it go on"


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
        faults.look(pods, progress.held)
        reasons = faults.messages or _events(cluster, pods)
        say("; ".join([f"{name}: {progress}", *reasons]))
        if faults.lasting:
            raise Stuck(f"{name}: {faults.lasting} ({progress})")
        because = f"; {reasons[0]}" if reasons else ""
        if progress.overdue and progress.seen:
            raise Stuck(f"{name}: {progress.overdue} ({progress}){because}")
        if time.monotonic() > deadline:
            raise Stuck(f"{name}: not there after {options.ready_timeout_s:g} s ({progress}){because}")
    raise ClusterError(f"{name} can't be followed")


class _Faults:
    """Remembers since when a pod has had its fault: a registry's hiccup passes, a wrong image doesn't.

    messages: what is at fault now; lasting: what has been for longer than it may, or again and again.
    """

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._since: dict[str, float] = {}
        self._over_before: set[str] | None = None
        self.messages: list[str] = []
        self.lasting = ""

    def look(self, pods: Sequence[Pod], held: str = "") -> None:
        """A pod without room doesn't last, for a node may be on its way; one that is over has been replaced."""
        over = {pod.uid for pod in pods if pod.over}
        self._over_before = over if self._over_before is None else self._over_before
        faulty = {p.uid: p for p in pods if p.fault and not p.leaving and p.uid not in self._over_before}
        again = [pod for pod in faulty.values() if pod.over]
        told = {uid: f"pod {p.name}: {p.fault}" for uid, p in faulty.items() if not (p.over or p.waits_for_room)}
        if held:
            told[""] = held
        now = time.monotonic()
        self._since = {uid: self._since.get(uid, now) for uid in told}
        self.messages = sorted({held, *(f"pod {pod.name}: {pod.fault}" for pod in faulty.values())} - {""})
        lasting = [told[uid] for uid, since in self._since.items() if now - since >= self._grace_s]
        if len(again) >= RESTARTS:
            lasting.append(f"{len(again)} pods have failed, such as pod {again[-1].name}: {again[-1].fault}")
        self.lasting = lasting[0] if lasting else ""


def _events(cluster: Cluster, pods: Sequence[Pod]) -> list[str]:
    """What is warned of about pods that don't get ready and don't say why: a probe that fails, a volume that lacks."""
    silent = {pod.name for pod in pods if not (pod.ready or pod.fault or pod.leaving or pod.over)}
    if not silent:
        return []
    events = cluster.look("events", query=[("fieldSelector", "involvedObject.kind=Pod,type=Warning")])
    last: dict[str, Object] = {}
    for event in sorted(events, key=lambda event: event.get("lastTimestamp") or ""):
        last[event["involvedObject"].get("name", "")] = event
    return [
        f"pod {name}: {event.get('reason', '')}: {_last_words(event.get('message', ''))}"
        for name, event in last.items()
        if name in silent
    ]


def _release(labels: dict[str, str]) -> dict[str, str]:
    return {RELEASE: labels[RELEASE]} if RELEASE in labels else {}


def _unscheduled(condition: Object) -> str:
    what = "no node has room for it" if condition["reason"] == "Unschedulable" else "it may not be scheduled yet"
    return f"{what} ({condition.get('message') or condition['reason']})"


def _refused(status: Object) -> str:
    """Why pods may not be created, as the ReplicaSet was told and its Deployment repeats."""
    for condition in status.get("conditions", ()):
        if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
            return f"a pod may not be created: {condition.get('message', condition.get('reason', ''))}"
    return ""


def _fault(status: Object) -> str:
    for kind, word in (("initContainerStatuses", "init container"), ("containerStatuses", "container")):
        for container in status.get(kind, ()):
            if fault := _container_fault(container):
                return f"{word} {container['name']}: {fault}"
    if status.get("phase") == "Failed":
        why = ": ".join(filter(None, (status.get("reason"), status.get("message"))))
        return f"it has failed{f' ({why})' if why else ''}"
    return ""


def _container_fault(container: Object) -> str:
    waiting = container.get("state", {}).get("waiting", {})
    ended = container.get("state", {}).get("terminated") or container.get("lastState", {}).get("terminated") or {}
    last = f"; last with exit code {ended['exitCode']}, {ended.get('reason', '')}" if ended.get("exitCode") else ""
    message = _last_words(ended.get("message") or waiting.get("message", ""))
    if waiting.get("reason") in WAITING:
        meaning = WAITING[waiting["reason"]].format(image=container.get("image", "?"))
        return f"{meaning} ({waiting['reason']}{last}{f': {message}' if message else ''})"
    if last and (container.get("state", {}).get("terminated") or container.get("restartCount", 0) >= RESTARTS):
        return f"it fails{last}{f': {message}' if message else ''}" if not container.get("ready") else ""
    return ""


def _last_words(text: str) -> str:
    """The end of a log: what failed stands there, on a line or a few."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[-LAST_LINES:])[-LAST_CHARACTERS:]
