"""KubernetesTarget: the pods of a Deployment, and a second Deployment that a release is tried on.

An upgrade replaces pods; nothing is loaded or unloaded inside one. What is the case is read from the cluster alone:
the stable Deployment's template says what is live, its annotation what was before.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from cmt_client import EmotionClient, ServerUnavailable
from cmt_client.operations import GetModelConfig, GetStatistics
from cmt_release.manifest import Manifest
from cmt_release.release import Release, ReleaseError
from cmt_rollout.errors import ApplyConflict, ClusterError, StepFailed, Stuck
from cmt_rollout.golden import Golden, generated_golden, golden_faults, golden_of_release
from cmt_rollout.kubernetes.cluster import MERGE, Cluster
from cmt_rollout.kubernetes.layout import (
    CANARY,
    ROLLOUT_MANAGER,
    STABLE,
    TRAFFIC,
    TRAFFIC_YES,
    ClusterOptions,
    Object,
    disagreement,
    previous_of,
    release_fields,
    release_of,
)
from cmt_rollout.kubernetes.lease import Lease
from cmt_rollout.kubernetes.pods import Pod, Progress, paused, pods_of, wait_for_rollout
from cmt_rollout.kubernetes.port_forward import PodConnector, PodsTransport
from cmt_rollout.live_traffic import Count, Counters, Traffic, counts_of
from cmt_rollout.preflight import fits

TIMEOUT_S = 30.0
POLL_S = 0.5
CONFLICT = 409

#: Gives the manifest of a release that the pods' store has; ReleaseError where it hasn't.
InStore = Callable[[int], Manifest]
#: Gives a release of a store on this machine; ReleaseError where it has none of that number.
Fetch = Callable[[int], Release]


def _not_here(number: int) -> Release:
    raise ReleaseError(f"release {number} isn't on this machine")


class KubernetesTarget:
    """One namespace that `cmt deploy` set up.

    connector: how a single pod is asked; in_store: looks into the store that the pods pull from, where it can be read
    from here; fetch: where the golden requests of a release come from; say: told what is under way. Raises
    ClusterError beside what a Target may.
    """

    def __init__(
        self,
        cluster: Cluster,
        connector: PodConnector,
        options: ClusterOptions,
        *,
        in_store: InStore | None = None,
        fetch: Fetch = _not_here,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._cluster, self._connector, self._options = cluster, connector, options
        self._in_store, self._fetch, self._say = in_store, fetch, say
        self._lease = Lease(cluster, options.lease_s, say)

    @property
    def name(self) -> str:
        return f"{self._cluster.namespace}/{STABLE}"

    def lock(self) -> AbstractContextManager[None]:
        return self._lease.held()

    def close(self) -> None:
        """Lets go of connections to pods."""
        self._connector.close()

    def live(self) -> int:
        release = release_of(self._deployment(STABLE))
        if release is None:
            raise ClusterError(f"{self.name} chooses no release; set it up with `cmt deploy`")
        return release

    def previous(self) -> int | None:
        return previous_of(self._deployment(STABLE))

    def resident(self) -> tuple[int, ...]:
        """The live release and the one before, which has proven itself here: going back to it takes no trial."""
        return tuple(number for number in (self.live(), self.previous()) if number is not None)

    def recover(self, wanted: int) -> str:  # noqa: ARG002
        done = [told] if (told := disagreement(self._deployment(STABLE))) else []
        if Progress.of(self._deployment(STABLE)).rolling:
            done.append(self._finish_rolling())
        canary = self._deployment(CANARY)
        if canary["spec"].get("replicas", 1):
            self.end_trial()
            done.append(f"the pods of release {release_of(canary)} on trial removed")
        return "; ".join(done) or f"release {self.live()} is live, nothing was left half done"

    def preflight(self, release: Release) -> list[str]:
        try:
            release.verify()
        except ReleaseError as error:
            return [str(error)]
        with contextlib.closing(self._transport(STABLE)) as stable:
            served = stable.call(GetModelConfig("emotion"), TIMEOUT_S)
        return [*fits(release.manifest, served), *self._missing_in_store(release), *self._refused(release)]

    def load(self, release: Release) -> None:
        replicas = self._options.canaries(self._deployment(STABLE)["spec"].get("replicas", 1))
        self._apply(CANARY, release.number, replicas=replicas)
        wait_for_rollout(self._cluster, CANARY, self._options, self._say)

    def share(self, release: Release, canary_share: float) -> None:
        """Each pod on trial takes traffic once it has itself answered the golden requests.

        Services share requests out evenly: what the pods get is their share of all pods.
        """
        if canary_share == 0:
            return
        golden = golden_of_release(release)
        wait_for_rollout(self._cluster, CANARY, self._options, self._say)
        for pod in self._ready(CANARY):
            if pod.release != str(release.number):
                raise StepFailed(
                    "canary", self.name, f"pod {pod.name} runs release {pod.release}: somebody changed {CANARY} by hand"
                )
            with EmotionClient(pod.name, transport=self._connector.transport(pod), retries=0) as client:
                faults = golden_faults(client, golden)
            if faults:
                raise StepFailed("canary", self.name, f"pod {pod.name}: {'; '.join(faults)}")
            self._lease.expect_signed(self._deployment(CANARY))
            labels = {"metadata": {"labels": {TRAFFIC: TRAFFIC_YES}}}
            self._cluster.request(
                "PATCH", self._cluster.path("pods", pod.name), labels, kind=MERGE, within_s=self._lease.remaining_s()
            )
            self._say(f"pod {pod.name} takes traffic")

    def client(self, candidate: bool) -> EmotionClient:
        which = CANARY if candidate else STABLE
        return EmotionClient(which, transport=self._transport(which), timeout_s=TIMEOUT_S, retries=0)

    def golden(self, number: int) -> Golden:
        try:
            return golden_of_release(self._fetch(number))
        except ReleaseError:
            return generated_golden(number)

    def counters(self) -> Counters:
        models: dict[tuple[str, str, int], Count] = {}
        for which in (STABLE, CANARY):
            for pod in self._ready(which):
                # A pod that leaves in this moment takes its counts along, as one that starts again does.
                with (
                    contextlib.closing(self._connector.transport(pod)) as transport,
                    contextlib.suppress(ServerUnavailable),
                ):
                    found = transport.call(GetStatistics(), TIMEOUT_S)
                    models |= counts_of(f"{which}/{pod.name}", found)
        return Counters(models)

    def traffic(self, window: Counters, release: int, candidate: bool) -> Traffic:
        which = CANARY if candidate else STABLE
        models = {key: count for key, count in window.models.items() if key[0].startswith(f"{which}/")}
        return Counters(models).traffic(release, False)

    def flip(self, release: int, previous: int | None) -> None:
        self._apply(STABLE, release, previous=previous)
        wait_for_rollout(self._cluster, STABLE, self._options, self._say)

    def end_trial(self) -> None:
        self._apply(CANARY, release_of(self._deployment(CANARY)), replicas=0)
        wait_for_rollout(self._cluster, CANARY, self._options, self._say)

    def retire(self, keep: tuple[int, ...], drain_s: float) -> str:
        canary = self._deployment(CANARY)
        if canary["spec"].get("replicas", 1) and release_of(canary) not in keep:
            self.end_trial()
        deadline = time.monotonic() + drain_s
        while left := self._others(keep):
            if time.monotonic() > deadline:
                return f"still ending: {', '.join(pod.name for pod in left)}"
            self._say(f"{len(left)} pods end")
            time.sleep(POLL_S)
        return f"only pods of release {', '.join(map(str, sorted(set(keep))))} are left"

    def _finish_rolling(self) -> str:
        """Brings a rolling update that was left under way to its end, or back where its pods don't get ready."""
        release = self.live()
        try:
            wait_for_rollout(self._cluster, STABLE, self._options, self._say)
        except Stuck as error:
            running = self._running(release)
            if running is None:
                raise
            self.flip(running, None)
            return f"back to release {running}, for release {release} was stuck: {error}"
        return f"release {release}, whose pods were being rolled out, is live"

    def _running(self, rejected: int) -> int | None:
        """The release that most ready pods run beside the rejected one; that of before where none is ready."""
        ready = [int(p.release) for p in self._pods(STABLE) if p.ready and p.release not in (str(rejected), "")]
        return statistics.mode(ready) if ready else self.previous()

    def _missing_in_store(self, release: Release) -> list[str]:
        if self._in_store is None:
            return []
        try:
            there = self._in_store(release.number)
        except ReleaseError as error:
            return [f"the pods can't pull it ({error}); send it there with `cmt release push`"]
        if there.digest == release.digest:
            return []
        return [
            f"the store's release {release.number} is another one ({there.digest[:12]}, here {release.digest[:12]})"
        ]

    def _refused(self, release: Release) -> list[str]:
        """What the API server says to a dry run of all that is going to be applied, and what it would do with it."""
        reasons = [f"{name}: {why}" for name in (STABLE, CANARY) if (why := paused(self._deployment(name)))]
        try:
            self._apply(CANARY, release.number, replicas=1, dry_run=True)
            self._apply(STABLE, release.number, previous=self.live(), dry_run=True)
        except ClusterError as error:
            reasons += [told] if (told := disagreement(self._deployment(STABLE))) else []
            reasons.append(str(error))
        for warning in self._cluster.take_warnings():
            self._say(f"warned of: {warning}")
        template = self._deployment(CANARY)["spec"]["template"]["metadata"].get("labels", {})
        if template.get(TRAFFIC) == TRAFFIC_YES:
            reasons.append(f"{CANARY}'s template gives its pods {TRAFFIC}: they would take traffic unproven; remove it")
        return reasons

    def _apply(
        self,
        name: str,
        release: int | None,
        *,
        previous: int | None = None,
        replicas: int | None = None,
        dry_run: bool = False,
    ) -> None:
        while True:
            within_s = self._lease.remaining_s()
            there = self._deployment(name)
            fields = release_fields(there, release, previous=previous, replicas=replicas)
            if not dry_run:
                self._lease.expect_signed(there)
                fields["metadata"]["resourceVersion"] = there["metadata"]["resourceVersion"]
            try:
                self._cluster.apply(
                    self._path(name),
                    fields,
                    ROLLOUT_MANAGER,
                    dry_run=dry_run,
                    # The canary is there for upgrades alone; whoever edits it mustn't keep it in the traffic.
                    force_conflicts=self._options.force_conflicts or name == CANARY,
                    within_s=within_s,
                )
            except ClusterError as error:
                if error.status != CONFLICT or isinstance(error, ApplyConflict):
                    raise
                time.sleep(POLL_S)  # somebody changed it in the same moment, if only its status: seen anew
            else:
                return

    def _deployment(self, name: str) -> Object:
        found = self._cluster.find(self._path(name))
        if found is None:
            raise ClusterError(
                f"there is no Deployment {name} in the namespace {self._cluster.namespace} of {self._cluster.name}; "
                "set it up with `cmt deploy`, canary component included",
                404,
            )
        return found

    def _path(self, name: str) -> str:
        return self._cluster.path("deployments", name, "apps/v1")

    def _transport(self, name: str) -> PodsTransport:
        return PodsTransport(lambda: self._ready(name), self._connector)

    def _ready(self, name: str) -> list[Pod]:
        """Pods of a Deployment that can be asked, of the release that its template chooses."""
        release = str(release_of(self._deployment(name)))
        return [pod for pod in self._pods(name) if pod.ready and pod.release in (release, "")]

    def _pods(self, name: str) -> list[Pod]:
        return pods_of(self._cluster, self._deployment(name)["spec"]["selector"]["matchLabels"])

    def _others(self, keep: tuple[int, ...]) -> list[Pod]:
        """Pods of either Deployment that are of no release to keep."""
        pods = [*self._pods(STABLE), *self._pods(CANARY)]
        return [pod for pod in pods if pod.release not in map(str, keep) and not pod.over]
