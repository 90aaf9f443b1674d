"""One driver at a time: a Lease in the namespace, renewed by a thread while the driver works.

A driver that was stopped for longer than the lease (a laptop that slept) may wake up while another one is at work. So
whoever takes the lease signs both Deployments, and writes to one only in the very state in which it saw its own
signature: the API server refuses what comes late, however late it comes.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone

from cmt_rollout.errors import ClusterError
from cmt_rollout.kubernetes.cluster import MERGE, Cluster
from cmt_rollout.kubernetes.layout import CANARY, DRIVER, LEASE, SIGNATURE_MANAGER, STABLE, Object
from cmt_server.errors import RepositoryBusy

GROUP = "coordination.k8s.io/v1"
RENEWALS = 3  # tries to renew within the lease's time


class Lease:
    """Held by at most one driver. Clocks needn't agree: one that looks expired is watched before it is taken over."""

    def __init__(self, cluster: Cluster, seconds: int, say: Callable[[str], None] = lambda _: None) -> None:
        self._cluster, self._seconds, self._say = cluster, seconds, say
        self._holder = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._renewed_s = 0.0

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Holds it throughout. RepositoryBusy where another driver does; ClusterError."""
        self._take()
        self._sign()
        over = threading.Event()
        renewer = threading.Thread(target=self._renew, args=(over,), name="cmt-lease", daemon=True)
        renewer.start()
        try:
            yield
        finally:
            over.set()
            renewer.join()
            self._let_go()

    def remaining_s(self) -> float:
        """How long it is ours for certain: what is written must be sent within that. ClusterError once it isn't."""
        left_s = self._renewed_s + self._seconds - time.monotonic()
        if left_s <= 0:
            raise ClusterError(
                f"lost the lease {LEASE}: it couldn't be renewed for {self._seconds} s, so another driver may be at "
                "work. Nothing was changed since; the next upgrade sees to what is left"
            )
        return left_s

    def expect_signed(self, deployment: Object) -> None:
        """ClusterError where another driver has signed a Deployment since."""
        holder = deployment["metadata"].get("annotations", {}).get(DRIVER, "nobody")
        if holder != self._holder:
            raise ClusterError(
                f"{holder} has taken over {deployment['metadata']['name']}; got its signature, expected our own "
                f"({self._holder}). Nothing was changed; see what that one did with `cmt status`"
            )

    def _sign(self) -> None:
        patch = {"metadata": {"annotations": {DRIVER: self._holder}}}
        for name in (STABLE, CANARY):
            path = self._cluster.path("deployments", name, "apps/v1")
            if self._cluster.find(path) is not None:
                query = [("fieldManager", SIGNATURE_MANAGER)]
                self._cluster.request("PATCH", path, patch, query, MERGE, self.remaining_s())

    def _take(self) -> None:
        lease = self._cluster.find(self._path(LEASE))
        if lease is not None and _holder(lease):
            self._expect_expired(lease)
        self._write(lease)

    def _expect_expired(self, lease: Object) -> None:
        """RepositoryBusy unless its holder gave no sign of life for the lease's time."""
        until = _moment(lease["spec"]["renewTime"]) + timedelta(seconds=lease["spec"]["leaseDurationSeconds"])
        if until < datetime.now(timezone.utc):
            watched_s = lease["spec"]["leaseDurationSeconds"] / 2  # one that lives renews it meanwhile
            self._say(f"waiting {watched_s:g} s: {_holder(lease)}, whose lease has run out, may still be at work")
            time.sleep(watched_s)
            now = self._cluster.find(self._path(LEASE))
            if now is None or now["spec"].get("renewTime") == lease["spec"]["renewTime"]:
                return
        raise RepositoryBusy(
            f"{_holder(lease)} is at work on {self._cluster.namespace} in {self._cluster.name}; "
            f"if it was killed, try again after {until:%H:%M:%S} UTC"
        )

    def _write(self, lease: Object | None, holder: str | None = None) -> None:
        """Enters the holder, this driver by default. RepositoryBusy when another one was quicker."""
        sent_s, now = time.monotonic(), datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        before = lease["spec"] if lease else {}
        own = self._holder if holder is None else holder
        taken = before.get("holderIdentity") != own
        spec = {
            "holderIdentity": own,
            "leaseDurationSeconds": self._seconds if own else 1,
            "acquireTime": now if taken else before["acquireTime"],
            "renewTime": now,
            "leaseTransitions": before.get("leaseTransitions", 0) + taken,
        }
        metadata = lease["metadata"] if lease else {"name": LEASE}
        body = {"apiVersion": GROUP, "kind": "Lease", "metadata": metadata, "spec": spec}
        try:
            if lease is None:
                self._cluster.request("POST", self._path(), body)
            else:
                self._cluster.request("PUT", self._path(LEASE), body, within_s=self._seconds)
        except ClusterError as error:
            if error.status != 409 or not self._is_ours():
                raise self._refusal(error) from error
        self._renewed_s = sent_s

    def _is_ours(self) -> bool:
        """A write whose answer was lost is refused when it is sent again."""
        lease = self._cluster.find(self._path(LEASE))
        return lease is not None and _holder(lease) == self._holder

    def _refusal(self, error: ClusterError) -> Exception:
        if error.status == 409:
            return RepositoryBusy(f"another driver took the lease {LEASE} in {self._cluster.namespace} first")
        return error

    def _renew(self, over: threading.Event) -> None:
        while not over.wait(self._seconds / RENEWALS):
            with contextlib.suppress(ClusterError, RepositoryBusy):  # `check` notices once it is too late
                lease = self._cluster.find(self._path(LEASE))
                if lease is not None and _holder(lease) == self._holder:
                    self._write(lease)

    def _let_go(self) -> None:
        with contextlib.suppress(ClusterError, RepositoryBusy):  # it expires by itself
            lease = self._cluster.find(self._path(LEASE))
            if lease is not None and _holder(lease) == self._holder:
                self._write(lease, holder="")

    def _path(self, name: str = "") -> str:
        return self._cluster.path("leases", name, GROUP)


def _holder(lease: Object) -> str:
    return lease["spec"].get("holderIdentity") or ""


def _moment(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=timezone.utc)
