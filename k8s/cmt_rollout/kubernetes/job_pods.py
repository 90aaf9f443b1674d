"""The pods of a Job while somebody follows it: why they don't start, how they end, what the first one logs."""

from __future__ import annotations

import re
from collections.abc import Callable

from cmt_rollout.errors import ClusterError
from cmt_rollout.kubernetes.cluster import Cluster, Query
from cmt_rollout.kubernetes.layout import Object
from cmt_rollout.kubernetes.pods import Pod

JOB_LABEL = "batch.kubernetes.io/job-name"
INDEX = "batch.kubernetes.io/job-completion-index"
#: Where seconds and their fraction end in the kubelet's time stamps: 2026-01-31T09:00:00.000000000Z
SECONDS, NANOSECONDS = 19, 29
TAIL = 200  # lines that an error and what launchers say of it have room in
ERROR = re.compile(r"(\[rank\d+\]: )?[\w.]*(Error|Exception|PeerLost)\b[^:]*: ")


class JobPods:
    """Of one Job. started: whether any of its pods runs or has run; each thing is told once."""

    def __init__(self, cluster: Cluster, job: str, say: Callable[[str], None]) -> None:
        self.started = False
        self._cluster, self._job, self._say = cluster, job, say
        self._told: set[tuple[str, str]] = set()
        self._ended = set[str]()
        self._fault = ""
        self._log = _Log(cluster)

    def look(self) -> None:
        """Tells what is new."""
        query = [("labelSelector", f"{JOB_LABEL}={self._job}")]
        pods = self._cluster.request("GET", self._cluster.path("pods"), query=query)["items"]
        pods.sort(key=lambda pod: (pod["metadata"].get("creationTimestamp", ""), pod["metadata"]["name"]))
        self.started |= any(pod.get("status", {}).get("phase") in ("Running", "Succeeded", "Failed") for pod in pods)
        first = [pod for pod in pods if pod["metadata"].get("annotations", {}).get(INDEX, "0") == "0"]
        for pod in first:
            for line in self._log.lines(pod["metadata"]["name"]):
                self._say(line)
        for pod in pods:
            name = pod["metadata"]["name"]
            if name in self._ended:
                continue
            if message := _ended(pod):
                self._ended.add(name)
                self._tell(name, f"pod {name}: {message}{self._reason(name)}")
            elif message := Pod.of(pod).fault:
                self._tell(name, f"pod {name}: {message}")
        if not pods:
            self._tell_events()

    def _reason(self, pod: str) -> str:
        """The last error that a pod logged of its own: torchrun's summary comes after it."""
        errors = [line for line in self._log.tail(pod) if ERROR.match(line) and "ChildFailedError" not in line]
        return f": {errors[-1]}" if errors else ""

    def last_fault(self) -> str:
        """What was told last of what went wrong, to put behind an error."""
        return f"; {self._fault}" if self._fault else ""

    def _tell_events(self) -> None:
        """Where there are no pods, why none may be made: a quota, pod security, an admission webhook."""
        query = [("fieldSelector", f"involvedObject.kind=Job,involvedObject.name={self._job}")]
        for event in self._cluster.request("GET", self._cluster.path("events"), query=query)["items"]:
            if event.get("type") == "Warning":
                self._tell(self._job, f"Job {self._job}: {event.get('reason', '')}: {event.get('message', '')}")

    def _tell(self, of: str, message: str) -> None:
        if (of, message) not in self._told:
            self._told.add((of, message))
            self._fault = message
            self._say(message)


class _Log:
    """The logs of pods, from where they were read to. A log that isn't there yet, or any more, has no lines."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._last: dict[str, str] = {}

    def lines(self, pod: str) -> list[str]:
        query = [("timestamps", "true")]
        if last := self._last.get(pod):
            query.append(("sinceTime", last[:SECONDS] + last[NANOSECONDS:]))  # it counts whole seconds
        stamped = [line.partition(" ") for line in self._read(pod, query)]
        new = [(stamp, line) for stamp, _, line in stamped if stamp > self._last.get(pod, "")]
        if new:
            self._last[pod] = new[-1][0]
        return [line for _, line in new]

    def tail(self, pod: str) -> list[str]:
        """The last lines of it, told or not."""
        return self._read(pod, [("tailLines", TAIL)])

    def _read(self, pod: str, query: Query) -> list[str]:
        try:
            return self._cluster.text(self._cluster.path("pods", pod, subresource="log"), query).splitlines()
        except ClusterError as error:
            if error.status in (400, 404):
                return []
            raise


def _ended(pod: Object) -> str:
    """How a pod failed; empty unless it did."""
    status = pod.get("status", {})
    if status.get("phase") != "Failed":
        return ""
    for container in status.get("containerStatuses", ()):
        ended = container.get("state", {}).get("terminated", {})
        if ended.get("exitCode"):
            reason = f", {ended['reason']}" if ended.get("reason", "Error") != "Error" else ""
            return f"failed with exit code {ended['exitCode']}{reason}"
    return f"failed: {status.get('reason', 'no reason given')} {status.get('message', '')}".strip()
