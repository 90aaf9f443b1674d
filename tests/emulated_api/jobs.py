"""Jobs of the emulated cluster: the Job controller's part, a kubelet that something else plays, and pods' logs.

Follows the Kubernetes documentation of Jobs (Indexed completion, pod failure policy with DisruptionTarget, success
policy, backoffLimit) and the API server's source: a Job's template is immutable; deleting a Job leaves its pods unless
propagationPolicy says otherwise (batch/v1's default is to orphan them); a log asked for before its container has
started is refused with 400. Left out: suspension, parallelism below completions, backoff that doubles.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Protocol

from emulated_api.requests import Refused, Request
from emulated_api.server import EmulatedApi
from emulated_api.store import Object

NAME, INDEX = "batch.kubernetes.io/job-name", "batch.kubernetes.io/job-completion-index"
OWNER = "batch.kubernetes.io/controller-uid"


class Kubelet(Protocol):
    """Runs the one container of each pod."""

    def start(self, pod: Object) -> None:
        """Called once, when the pod is bound to a node."""

    def exit_code(self, name: str) -> int | None:
        """None while it runs."""

    def log(self, name: str) -> Iterable[tuple[float, str]]:
        """Lines with the time at which each came."""

    def stop(self, name: str) -> None:
        """Ends what still runs of a pod that is deleted."""


@dataclass
class Jobs:
    """Of an emulated API server, which `attach` tells of it. refusal: why no pod may be made."""

    api: EmulatedApi
    kubelet: Kubelet
    backoff_s: float = 0.1
    refusal: str = ""
    _started: set[str] = field(default_factory=set)
    _failed_at: dict[str, float] = field(default_factory=dict)
    _count: int = 0

    def attach(self) -> Jobs:
        self.api.movers.append(self.step)
        self.api.before.append(self._admit)
        self.api.logs = self.log
        return self

    def step(self) -> None:
        there = {pod["metadata"]["name"] for pod in self.api.store.items("pods")}
        for name in self._started - there:  # somebody deleted them
            self.kubelet.stop(name)
        self._started &= there
        for job in list(self.api.store.items("jobs")):
            if "deletionTimestamp" in job["metadata"]:
                self._collect(job)
            elif not job.get("status", {}).get("conditions"):
                self._sync(job)

    def log(self, request: Request) -> str:
        pod = self.api.there(request)
        if request.name not in self._started:
            raise Refused(400, "BadRequest", f'container in pod "{pod["metadata"]["name"]}" is waiting to start')
        lines = [(_stamp(at), line) for at, line in self.kubelet.log(request.name)]
        lines = lines[-int(request.query.get("tailLines", len(lines) or 1)) :]
        since, stamped = request.query.get("sinceTime", "")[:19], request.query.get("timestamps") == "true"
        return "".join(f"{stamp} {line}\n" if stamped else f"{line}\n" for stamp, line in lines if stamp[:19] >= since)

    def pods(self, job: Object) -> list[Object]:
        found = self.api.store.items("pods")
        return [pod for pod in found if pod["metadata"].get("labels", {}).get(NAME) == job["metadata"]["name"]]

    def _sync(self, job: Object) -> None:
        spec, before = job["spec"], job.get("status")
        status = dict(before or {})
        pods = self.pods(job)
        for pod in pods:
            self._move(pod)
        pods = self.pods(job)
        done = {_index(pod) for pod in pods if pod["status"]["phase"] == "Succeeded"}
        acts = {pod["metadata"]["name"]: _action(spec, pod) for pod in pods if pod["status"]["phase"] == "Failed"}
        failed = [name for name, action in acts.items() if action != "Ignore"]
        status |= {"active": sum(map(_active, pods)), "succeeded": len(done), "failed": len(failed)}
        enough = {int(rule["succeededIndexes"]) for rule in spec.get("successPolicy", {}).get("rules", ())}
        if "FailJob" in acts.values():
            self._end(status, pods, "Failed", "PodFailurePolicy", "a pod matched FailJob rule")
        elif len(failed) > spec.get("backoffLimit", 6):
            self._end(status, pods, "Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit")
        elif len(done) == spec["completions"] or (enough and enough <= done):
            self._end(status, pods, "Complete", "CompletionsReached", "")
        else:
            self._make_missing(job, pods, done)
        if status != before:
            self._put(job, status)

    def _make_missing(self, job: Object, pods: list[Object], done: set[int]) -> None:
        there = {_index(pod) for pod in pods if _active(pod)}
        for index in sorted(set(range(job["spec"]["completions"])) - there - done):
            if time.monotonic() - self._failed_at.get(f"{job['metadata']['uid']}/{index}", 0.0) < self.backoff_s:
                continue
            if self.refusal:
                self._warn(job)
                return
            self._make(job, index)

    def _make(self, job: Object, index: int) -> None:
        self._count += 1
        name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
        pod = json.loads(json.dumps(job["spec"]["template"]))
        pod["metadata"].update(name=f"{name}-{index}-{self._count:05d}", namespace=namespace)
        pod["metadata"]["labels"] |= {NAME: name, INDEX: str(index), OWNER: job["metadata"]["uid"]}
        pod["metadata"]["annotations"] = {INDEX: str(index)}
        pod["spec"]["hostname"] = f"{name}-{index}"
        pod |= {"apiVersion": "v1", "kind": "Pod", "status": {"phase": "Pending", "conditions": []}}
        self.api.store.put(("pods", namespace, pod["metadata"]["name"]), pod)

    def _move(self, pod: Object) -> None:
        """As the kubelet reports it."""
        name = pod["metadata"]["name"]
        if not _active(pod):
            return
        if name not in self._started:
            self._started.add(name)
            self.kubelet.start(pod)
            pod["status"] = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
        elif (code := self.kubelet.exit_code(name)) is not None:
            self._failed_at[f"{_owner(self.api, pod)}/{_index(pod)}"] = time.monotonic()
            pod["status"] = {"phase": "Failed" if code else "Succeeded", "containerStatuses": [self._ended(pod, code)]}
        else:
            return
        self.api.store.put(("pods", pod["metadata"]["namespace"], name), pod)

    def _ended(self, pod: Object, code: int) -> Object:
        (container,) = pod["spec"]["containers"]
        told = {"exitCode": code, "reason": "Error" if code else "Completed"}
        if code and container.get("terminationMessagePolicy") == "FallbackToLogsOnError":
            told["message"] = "\n".join(line for _, line in self.kubelet.log(pod["metadata"]["name"]))[-2048:]
        return {"name": container["name"], "state": {"terminated": told}}

    def _end(self, status: Object, pods: list[Object], kind: str, reason: str, message: str) -> None:
        status["conditions"] = [{"type": kind, "status": "True", "reason": reason, "message": message}]
        status["active"] = 0
        for pod in filter(_active, pods):
            self._remove(pod)

    def _collect(self, job: Object) -> None:
        """Foreground deletion: the pods first."""
        for pod in self.pods(job):
            self._remove(pod)
        self.api.store.remove(("jobs", job["metadata"]["namespace"], job["metadata"]["name"]))

    def _remove(self, pod: Object) -> None:
        self.kubelet.stop(pod["metadata"]["name"])
        self._started.discard(pod["metadata"]["name"])
        self.api.store.remove(("pods", pod["metadata"]["namespace"], pod["metadata"]["name"]))

    def _warn(self, job: Object) -> None:
        key = ("events", job["metadata"]["namespace"], f"{job['metadata']['name']}.1")
        if self.api.store.get(key) is None:
            about = {"kind": "Job", "name": job["metadata"]["name"], "uid": job["metadata"]["uid"]}
            event = {"apiVersion": "v1", "kind": "Event", "metadata": {"name": key[2], "namespace": key[1]}}
            said = {"type": "Warning", "reason": "FailedCreate", "message": f"Error creating: {self.refusal}"}
            self.api.store.put(key, {**event, "involvedObject": about, **said})

    def _put(self, job: Object, status: Object) -> None:
        key = ("jobs", job["metadata"]["namespace"], job["metadata"]["name"])
        now = self.api.store.get(key)
        if now is not None:
            self.api.store.put(key, {**now, "status": status})

    def _admit(self, request: Request) -> None:
        """What the API server does with Jobs beyond what it does with every object."""
        if request.plural != "jobs" or not (there := self.api.store.get(request.key)):
            return
        if request.method == "PATCH" and request.body["spec"]["template"] != there["spec"]["template"]:
            raise Refused(422, "Invalid", f'Job.batch "{request.name}" is invalid: spec.template: field is immutable')


def _active(pod: Object) -> bool:
    return pod["status"]["phase"] in ("Pending", "Running")


def _action(spec: Object, pod: Object) -> str:
    """Of the first rule of the pod failure policy that a failed pod matches; Count where none does."""
    conditions = {c["type"] for c in pod["status"].get("conditions", ()) if c["status"] == "True"}
    codes = {each["state"]["terminated"]["exitCode"] for each in pod["status"].get("containerStatuses", ())}
    for rule in spec.get("podFailurePolicy", {}).get("rules", ()):
        if codes & set(rule.get("onExitCodes", {}).get("values", ())):
            return str(rule["action"])
        if conditions & {pattern["type"] for pattern in rule.get("onPodConditions", ())}:
            return str(rule["action"])
    return "Count"


def _index(pod: Object) -> int:
    return int(pod["metadata"]["annotations"][INDEX])


def _owner(api: EmulatedApi, pod: Object) -> str:
    job = api.store.get(("jobs", pod["metadata"]["namespace"], pod["metadata"]["labels"][NAME]))
    return job["metadata"]["uid"] if job else ""


def _stamp(at: float) -> str:
    """As the kubelet writes it: always nine digits of a second."""
    whole = datetime.fromtimestamp(int(at), timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{whole}.{int(at % 1 * 1e9):09d}Z"
