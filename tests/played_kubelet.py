"""PlayedKubelet: statuses of pods on a real control plane that has no nodes.

Pods that ask for the scheduler `played` are left alone by the real one. Nothing runs in them: their status says what
the emulation's kubelet would say, so the same faults can be played on either. A pod without a node goes at once when it
is deleted (registry/core/pod/strategy.go: CheckGracefulDelete).
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

from cmt_rollout.errors import ClusterError
from cmt_rollout.kubernetes.cluster import MERGE, Cluster
from emulated_api.kubelet import BAD_IMAGE, EVENTS, Fault, release_of, status_of
from emulated_api.store import now_text

SCHEDULER = "played"
LOOK_S = 0.1


class PlayedKubelet:
    """A context manager, of one namespace. faults: release -> what befalls its pods; ready_s: how long pods take."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.faults: dict[str, Fault] = {}
        self.ready_s = self.leave_s = 0.05
        self._seen: dict[str, float] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> PlayedKubelet:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def evict(self, pod: dict[str, Any]) -> None:
        """For want of the node's disk: its object stays, its work is over."""
        self._set(pod, status_of("evicted", pod["spec"], ""))

    def _run(self) -> None:
        while not self._over.wait(LOOK_S):
            with contextlib.suppress(ClusterError):  # the namespace isn't there yet, or the API server is away
                for pod in self._cluster.request("GET", self._cluster.path("pods"))["items"]:
                    self._advance(pod)

    def _advance(self, pod: dict[str, Any]) -> None:
        age_s = time.monotonic() - self._seen.setdefault(pod["metadata"]["uid"], time.monotonic())
        status = {key: value for key, value in pod["status"].items() if key != "qosClass"}
        if age_s < self.ready_s or status != {"phase": "Pending"} or "deletionTimestamp" in pod["metadata"]:
            return
        fault = self.faults.get(release_of(pod))
        if any(BAD_IMAGE in container["image"] for container in pod["spec"]["containers"]):
            fault = "image"
        if fault in EVENTS:
            self._tell(pod, *EVENTS[fault])
        self._set(pod, status_of(fault, pod["spec"], f"10.1.0.{len(self._seen) % 250 + 1}"))

    def _set(self, pod: dict[str, Any], status: dict[str, Any]) -> None:
        path = self._cluster.path("pods", pod["metadata"]["name"], subresource="status")
        self._cluster.request("PATCH", path, {"status": status}, [("fieldManager", "kubelet")], MERGE)

    def _tell(self, pod: dict[str, Any], reason: str, message: str) -> None:
        metadata = pod["metadata"]
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{metadata['name']}.{reason.lower()}", "namespace": metadata["namespace"]},
            "involvedObject": {"kind": "Pod", **{key: metadata[key] for key in ("name", "namespace", "uid")}},
            "type": "Warning",
            "reason": reason,
            "message": message,
            "lastTimestamp": now_text(),
        }
        self._cluster.request("POST", self._cluster.path("events"), event)
