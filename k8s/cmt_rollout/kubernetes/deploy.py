"""Brings manifests to a cluster: all of them are tried first, then applied, and the servers waited for.

Nothing is ever deleted. What upgrades decide on (the release, the replicas on trial) is left to them: it is applied
once, when a Deployment is made, and handed over to their field manager. So are the replicas that manifests leave to an
autoscaler: the API server sets a field that its last owner leaves out to the default, which is one pod.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from cmt_rollout.errors import ApplyConflict, ClusterError
from cmt_rollout.kubernetes.cluster import Cluster
from cmt_rollout.kubernetes.layout import (
    CANARY,
    DEPLOY_MANAGER,
    REPLICAS_MANAGER,
    ROLLOUT_MANAGER,
    STABLE,
    ClusterOptions,
    Object,
    owns,
    previous_of,
    release_fields,
    release_of,
    replicas_fields,
)
from cmt_rollout.kubernetes.lease import Lease
from cmt_rollout.kubernetes.overlays import autoscaled, in_order, overridden, with_release, without_release
from cmt_rollout.kubernetes.pods import paused, wait_for_rollout
from cmt_rollout.kubernetes.rendered import Manifests, Workload, least_replicas
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
        self.lease = Lease(cluster, timing.lease_s, self.report.say)
        self.is_new: dict[str, bool] = {}
        self.scalers: list[Object] = []  # autoscalers of this namespace, of these manifests or not
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
        self.scalers = self.cluster.look("horizontalpodautoscalers", "autoscaling/v2")
        self.cluster.take_warnings()  # of what was only looked at
        warnings = []
        for item in self.items:
            with _named(item):
                if _is_ours(item):
                    self._try_deployment(item)
                else:
                    self._apply(item, dry_run=True)
                warned = self.cluster.take_warnings()
                self._expect_secure(warned)
            warnings += [f"warned of: {item['kind']} {item['metadata']['name']}: {text}" for text in warned]
        return "; ".join([f"{len(self.items)} objects pass a dry run", *self._kept_scalers(), *warnings])

    def _expect_secure(self, warned: Sequence[str]) -> None:
        """ClusterError for pods that the namespace is going to refuse; of what makes them it only warns."""
        path = f"/api/v1/namespaces/{self.cluster.namespace}"
        for text in (each for each in warned if "PodSecurity" in each):
            ours = next((item for item in self.items if item["kind"] == "Namespace"), None)
            namespace = ours or self.cluster.find(path) or {"metadata": {}}
            level = namespace["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce")
            if f'PodSecurity "{level}:' in text:
                raise ClusterError(f"the namespace refuses its pods: {text}")

    def _try_deployment(self, item: Object) -> None:
        there = self.cluster.find(self.cluster.path_of(item))
        if there and (why := paused(there)):
            raise ClusterError(why)
        live = release_of(there) if there else None
        self.is_new[item["metadata"]["name"]] = live is None
        if live is None:
            self._apply(self._chosen(item), dry_run=True)
            return
        wanted = self.options.release
        if item["metadata"]["name"] == STABLE and wanted not in (None, live):
            raise ClusterError(f"release {live} is live; `cmt upgrade {wanted} --kubernetes` moves it, with its checks")
        own = self._own(item)
        if there is not None and "replicas" in own["spec"] and owns(there, REPLICAS_MANAGER):
            self._apply(replicas_fields(there, own["spec"].pop("replicas")), REPLICAS_MANAGER, dry_run=True)
        self._apply(own, dry_run=True)

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
        if is_canary:
            self._apply(self._own(item))
        else:
            self._bring_replicas(there, self._own(item))

    def _bring_replicas(self, there: Object, own: Object) -> None:
        """Applies what is ours. The replicas are never nobody's, neither on their way to an autoscaler nor back."""
        wanted = own["spec"].get("replicas")
        if wanted is None:
            with contextlib.suppress(ApplyConflict):  # somebody else's, at another count: they stay whatever we do
                self._apply(replicas_fields(there, there["spec"]["replicas"]), REPLICAS_MANAGER, force=False)
        elif owns(there, REPLICAS_MANAGER):
            self._apply(replicas_fields(there, wanted), REPLICAS_MANAGER)
        self._apply(own)
        if wanted is not None and owns(there, REPLICAS_MANAGER):
            self._apply(replicas_fields(there, None), REPLICAS_MANAGER)

    def _wait(self) -> str:
        names = [item["metadata"]["name"] for item in self.items if item["kind"] == "Deployment"]
        for name in names:
            wait_for_rollout(self.cluster, name, self.timing, self.report.say)
        return f"{', '.join(names) or 'nothing'} available"

    def _chosen(self, item: Object) -> Object:
        """As it is made: with its release and its first pods, of which a canary has none."""
        release = self.options.release if self.options.release is not None else release_of(item)
        if release is None:
            raise ClusterError(f"{item['metadata']['name']} chooses no release; give one with --release")
        replicas = 0 if item["metadata"]["name"] == CANARY else least_replicas(Manifests(self.items), Workload(item))
        chosen = with_release(item, release)
        return {**chosen, "spec": {**chosen["spec"], "replicas": replicas}}

    def _own(self, item: Object) -> Object:
        """What stays ours of a Deployment: not the release, nor replicas that upgrades or an autoscaler decide on."""
        mine = without_release(item)
        if item["metadata"]["name"] == CANARY or autoscaled([*self.items, *self.scalers], item):
            mine["spec"].pop("replicas", None)
        return mine

    def _kept_scalers(self) -> list[str]:
        """Autoscalers that the manifests no longer have, and that decide all the same: nothing is deleted here."""
        return [
            f"HorizontalPodAutoscaler {name} isn't in the manifests and still scales {item['metadata']['name']}, whose "
            f"replicas are left to it; `kubectl delete hpa {name} -n {self.cluster.namespace}` ends that"
            for item in self.items
            if _is_ours(item) and not autoscaled(self.items, item)
            for name in (s["metadata"]["name"] for s in self.scalers if autoscaled([s], item))
        ]

    def _apply(
        self, item: Object, manager: str = DEPLOY_MANAGER, dry_run: bool = False, force: bool | None = None
    ) -> None:
        path = self.cluster.path_of(item)
        within_s = self.lease.remaining_s() if self.at_work else None
        forced = self.timing.force_conflicts if force is None else force
        self.cluster.apply(path, item, manager, dry_run=dry_run, force_conflicts=forced, within_s=within_s)


def _is_ours(item: Object) -> bool:
    return item["kind"] == "Deployment" and item["metadata"]["name"] in (STABLE, CANARY)


@contextlib.contextmanager
def _named(item: Object) -> Iterator[None]:
    """Errors say which object they are about."""
    try:
        yield
    except ClusterError as error:
        raise ClusterError(f"{item['kind']} {item['metadata']['name']}: {error}", error.status) from error
