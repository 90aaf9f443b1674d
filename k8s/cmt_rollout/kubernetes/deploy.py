"""Brings manifests to a cluster: all of them are tried first, then applied, and the servers waited for.

Nothing is ever deleted. What upgrades decide on (the release, the replicas on trial) is left to them: it is applied
once, when a Deployment is made, and handed over to their field manager.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from cmt_rollout.errors import ClusterError
from cmt_rollout.kubernetes.cluster import Cluster
from cmt_rollout.kubernetes.layout import (
    CANARY,
    DEPLOY_MANAGER,
    ROLLOUT_MANAGER,
    STABLE,
    ClusterOptions,
    Object,
    previous_of,
    release_fields,
    release_of,
)
from cmt_rollout.kubernetes.lease import Lease
from cmt_rollout.kubernetes.overlays import autoscaled, in_order, overridden, with_release, without_release
from cmt_rollout.kubernetes.pods import wait_for_rollout
from cmt_rollout.options import Following, Report, Step
from cmt_rollout.steps import StepRun


@dataclass(frozen=True)
class DeployOptions:
    """What to deploy.

    release: for Deployments that aren't there yet, the manifests' own by default; override: merged into the pod
    templates; dry_run: nothing is changed.
    """

    release: int | None = None
    override: Object = field(default_factory=dict)
    dry_run: bool = False


def deploy(
    cluster: Cluster, items: Sequence[Object], options: DeployOptions, timing: ClusterOptions, report: Report
) -> None:
    """All objects are as the manifests say, and the pods available. Raises StepFailed, RepositoryBusy, ClusterError."""
    _Deploy(cluster, in_order(overridden(items, options.override)), options, timing, report).run()


class _Deploy:
    """One deployment; its methods are the steps."""

    def __init__(
        self, cluster: Cluster, items: list[Object], options: DeployOptions, timing: ClusterOptions, report: Report
    ) -> None:
        self.cluster, self.items, self.options, self.timing = cluster, items, options, timing
        self.report = Following(report)
        self.lease = Lease(cluster, timing.lease_s)
        self.is_new: dict[str, bool] = {}
        self.at_work = False

    def run(self) -> None:
        self._place()
        self._step("preflight", self._try)
        if self.options.dry_run:
            return
        with self.lease.held():
            self.at_work = True
            self._step("load", self._bring)
            self._step("watch", self._wait)

    def _step(self, name: Step, work: Callable[[], str]) -> None:
        StepRun(self.report, name, self.cluster.namespace).run(work)

    def _place(self) -> None:
        """ValueError for objects that the manifests put into another namespace."""
        others = {item["metadata"].get("namespace", self.cluster.namespace) for item in self.items}
        others |= {item["metadata"]["name"] for item in self.items if item["kind"] == "Namespace"}
        if wrong := sorted(others - {self.cluster.namespace}):
            raise ValueError(
                f"the manifests are for the namespace {', '.join(wrong)}; --namespace is {self.cluster.namespace}. "
                "Give the same, or set `namespace:` in an overlay"
            )

    def _try(self) -> str:
        """A dry run of everything. A namespace that isn't there is made first: nothing can be tried in it before."""
        for item in self.items:
            if item["kind"] == "Namespace" and self.cluster.find(self.cluster.path_of(item)) is None:
                if self.options.dry_run:
                    return f"the namespace {self.cluster.namespace} isn't there yet: no more than that can be tried"
                self._apply(item)
        for item in self.items:
            with _named(item):
                if _is_ours(item):
                    self._try_deployment(item)
                else:
                    self._apply(item, dry_run=True)
        return f"{len(self.items)} objects pass a dry run"

    def _try_deployment(self, item: Object) -> None:
        there = self.cluster.find(self.cluster.path_of(item))
        live = release_of(there) if there else None
        self.is_new[item["metadata"]["name"]] = live is None
        if live is None:
            self._apply(self._chosen(item), dry_run=True)
            return
        wanted = self.options.release
        if item["metadata"]["name"] == STABLE and wanted not in (None, live):
            raise ClusterError(f"release {live} is live; `cmt upgrade {wanted} --kubernetes` moves it, with its checks")
        self._apply(self._own(item), dry_run=True)

    def _bring(self) -> str:
        for item in self.items:
            self.report.say(f"{item['kind']} {item['metadata']['name']}")
            with _named(item):
                if _is_ours(item):
                    self._bring_deployment(item)
                else:
                    self._apply(item)
        return f"{len(self.items)} objects applied"

    def _bring_deployment(self, item: Object) -> None:
        """Made with its release; that is then the upgrades', under their field manager, and no longer ours."""
        if self.is_new[item["metadata"]["name"]]:
            self._apply(self._chosen(item))
        there = self.cluster.request("GET", self.cluster.path_of(item))
        is_canary = item["metadata"]["name"] == CANARY
        fields = release_fields(
            there,
            release_of(there),
            previous=previous_of(there),
            replicas=there["spec"].get("replicas", 1) if is_canary else None,
        )
        self._apply(fields, ROLLOUT_MANAGER)
        self._apply(self._own(item))

    def _wait(self) -> str:
        names = [item["metadata"]["name"] for item in self.items if item["kind"] == "Deployment"]
        for name in names:
            wait_for_rollout(self.cluster, name, self.timing, self.report.say)
        return f"{', '.join(names) or 'nothing'} available"

    def _chosen(self, item: Object) -> Object:
        """With the release that it is made with."""
        release = self.options.release if self.options.release is not None else release_of(item)
        if release is None:
            raise ClusterError(f"{item['metadata']['name']} chooses no release; give one with --release")
        return self._scaled(with_release(item, release))

    def _own(self, item: Object) -> Object:
        """What stays ours of a Deployment."""
        mine = self._scaled(without_release(item))
        if item["metadata"]["name"] == CANARY:
            mine["spec"].pop("replicas", None)
        return mine

    def _scaled(self, item: Object) -> Object:
        """Without replicas where an autoscaler decides on them: applying ours would fight it."""
        if not autoscaled(self.items, item):
            return item
        return {**item, "spec": {key: value for key, value in item["spec"].items() if key != "replicas"}}

    def _apply(self, item: Object, manager: str = DEPLOY_MANAGER, dry_run: bool = False) -> None:
        path = self.cluster.path_of(item)
        force = self.timing.force_conflicts
        within_s = self.lease.remaining_s() if self.at_work else None
        self.cluster.apply(path, item, manager, dry_run=dry_run, force_conflicts=force, within_s=within_s)


def _is_ours(item: Object) -> bool:
    return item["kind"] == "Deployment" and item["metadata"]["name"] in (STABLE, CANARY)


@contextlib.contextmanager
def _named(item: Object) -> Iterator[None]:
    """Errors say which object they are about."""
    try:
        yield
    except ClusterError as error:
        raise ClusterError(f"{item['kind']} {item['metadata']['name']}: {error}", error.status) from error
