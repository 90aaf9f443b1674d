"""The pods of a Job while somebody follows it: why they don't start, how they end, what the first one logs."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from cmt_rollout.errors import ClusterError
from cmt_rollout.kubernetes.cluster import Cluster, Query
from cmt_rollout.kubernetes.layout import Object
from cmt_rollout.kubernetes.pods import Pod

OWNER = "batch.kubernetes.io/controller-uid"
INDEX = "batch.kubernetes.io/job-completion-index"
#: Where seconds and their fraction end in the kubelet's time stamps: 2026-01-31T09:00:00.000000000Z
SECONDS, NANOSECONDS = 19, 29
TAIL = 50  # lines that an error is looked for in
ERROR = re.compile(r"(\[rank\d+\]: )?[\w.]*(Error|Exception|PeerLost)\b[^:]*: ")


class JobPods:
    """Of one Job; each thing is told once."""

    def __init__(self, cluster: Cluster, job: str, say: Callable[[str], None]) -> None:
        self._cluster, self._job, self._say = cluster, job, say
        self._told = set[str]()
        self._ended = set[str]()
        self._fault = ""
        self._log = _Log(cluster)

    def look(self, job: Object) -> bool:
        """Tells what is new; whether each of the Job's numbers has a pod that runs or is done."""
        query = [("labelSelector", f"{OWNER}={job['metadata']['uid']}")]
        pods = self._cluster.request("GET", self._cluster.path("pods"), query=query)["items"]
        pods.sort(key=lambda pod: (pod["metadata"].get("creationTimestamp", ""), pod["metadata"]["name"]))
        for pod in (pod for pod in pods if _index(pod) == "0"):
            for line in self._log.lines(pod["metadata"]["name"]):
                self._say(line)
        for pod in pods:
            self._tell_of(pod)
        if job["spec"].get("suspend"):
            self._tell(f"Job {self._job} is suspended: it waits for whoever admits it to the cluster")
        started, waiting = _indices(pods, "Running", "Succeeded"), _indices(pods, "Pending")
        wanted = int(job["spec"].get("completions", 1))
        if len(started | waiting) < wanted:
            self._tell_events(job["metadata"]["uid"])
        return len(started) >= wanted

    def _tell_of(self, pod: Object) -> None:
        """What keeps a pod from starting, or how it failed."""
        name = pod["metadata"]["name"]
        if name in self._ended:
            return
        if message := _ended(pod):
            self._ended.add(name)
            self._tell(f"pod {name}: {message}{self._reason(name)}")
        elif message := Pod.of(pod).fault:
            self._tell(f"pod {name}: {message}")

    def _reason(self, pod: str) -> str:
        """The last error that a pod logged."""
        errors = [line for line in self._log.tail(pod) if ERROR.match(line)]
        return f": {errors[-1]}" if errors else ""

    def last_fault(self) -> str:
        """What was told last of what went wrong, to put behind an error."""
        return f"; {self._fault}" if self._fault else ""

    def _tell_events(self, uid: str) -> None:
        """Where pods are missing, why none may be made: a quota, pod security, an admission webhook."""
        query = [("fieldSelector", f"involvedObject.uid={uid}")]
        for event in self._cluster.request("GET", self._cluster.path("events"), query=query)["items"]:
            if event.get("type") == "Warning":
                self._tell(f"Job {self._job}: {event.get('reason', '')}: {event.get('message', '')}")

    def _tell(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
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


def _index(pod: Object) -> str:
    """Its number among the Job's, from which its rank is."""
    return str(pod["metadata"].get("annotations", {}).get(INDEX, "0"))


def _indices(pods: Sequence[Object], *phases: str) -> set[str]:
    return {_index(pod) for pod in pods if pod.get("status", {}).get("phase") in phases}


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
