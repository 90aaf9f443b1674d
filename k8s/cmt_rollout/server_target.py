"""ServerTarget: one Triton server and the repository that it reads."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from cmt_client import ControlFailed, EmotionClient, ModelControl
from cmt_client.canary import CanaryMode
from cmt_client.operations import IndexEntry
from cmt_client.transport import Transport, connect
from cmt_pipeline.pipelines import CANDIDATE_PREFIX, PIPELINES, candidate_of
from cmt_pipeline.stages import STAGES
from cmt_release.manifest import Manifest
from cmt_release.release import Release
from cmt_rollout.golden import Golden, generated_golden, golden_of
from cmt_rollout.live_traffic import Counters, Traffic, counts_of
from cmt_rollout.preflight import preflight
from cmt_rollout.refusals import refusals
from cmt_server.errors import RepositoryError
from cmt_server.repository import Live, Repository

TIMEOUT_S = 30.0
POLL_S = 0.1


class ServerTarget:
    """A server whose repository this process can write to.

    What is the case is read from the repository and the server alone, so that another process can go on at any moment.
    """

    def __init__(
        self,
        url: str,
        repository: Repository,
        token: str | None,
        *,
        metrics_url: str | None = None,
        connect: Callable[[str], Transport] = connect,
    ) -> None:
        """metrics_url: where refusals are counted by code, where that is known; connect: opens a transport."""
        self._url, self._connect = url, connect
        self._repository, self._metrics_url = repository, metrics_url
        self._control = ModelControl(url, token=token, transport=connect(url))

    @property
    def name(self) -> str:
        return self._url

    def lock(self) -> AbstractContextManager[None]:
        return self._repository.lock()

    def close(self) -> None:
        """Lets go of the connection."""
        self._control.close()

    def live(self) -> int:
        live = self._repository.live()
        if live is None:
            raise RepositoryError(f"nothing was installed in {self._repository.root}; start it with `cmt serve`")
        return live.release

    def previous(self) -> int | None:
        live = self._repository.live()
        return live.previous if live else None

    def resident(self) -> tuple[int, ...]:
        return tuple(self._repository.manifests())

    def recover(self, wanted: int) -> str:
        live, previous = self.live(), self.previous()
        done = []
        served = self._served()
        if late := [name for name in PIPELINES if served.get(name) != live]:
            self.flip(live, previous)
            done.append(f"{len(late)} pipelines brought to release {live}, which the repository says is live")
        if self._candidates() or any(self._repository.candidate.iterdir()):
            self.end_trial()
            done.append("the pipelines of a release on trial removed")
        keep = tuple(number for number in self.resident() if number in (live, previous, wanted))
        if keep != self.resident() or self._unlike(keep):
            done.append(self.retire(keep, TIMEOUT_S))
        return "; ".join(done) or f"release {live} is live, nothing was left half done"

    def preflight(self, release: Release) -> list[str]:
        description = self._control.describe("emotion")
        return preflight(release, self._repository, description)

    def load(self, release: Release) -> None:
        self._repository.add(release)
        both = (self.live(), release.number)
        self._repository.load_only(both)
        self._load_stages(self._unlike(both))
        if missing := self._unlike(both):
            raise ControlFailed(f"{', '.join(missing)} isn't ready in all its versions after it was loaded")
        self.share(release, 0.0)

    def share(self, release: Release, canary_share: float) -> None:
        self._repository.write_candidate(release.number, canary_share)
        for name in PIPELINES:
            self._control.load(candidate_of(name))

    def client(self, candidate: bool) -> EmotionClient:
        canary: CanaryMode = "only" if candidate else "off"
        return EmotionClient(
            self._url, timeout_s=TIMEOUT_S, retries=0, canary=canary, transport=self._connect(self._url)
        )

    def golden(self, number: int) -> Golden:
        manifest, files = self._repository.manifests().get(number), self._repository.golden_files(number)
        if manifest is None:
            return generated_golden(number)
        if not files:
            return generated_golden(number, manifest.info.modalities)
        version = manifest.stages["preprocess"].version
        return golden_of(manifest, files, self._repository.version_folder("preprocess", version))

    def counters(self) -> Counters:
        return Counters(counts_of(self._url, self._control.statistics()), refusals(self._url, self._metrics_url))

    def traffic(self, window: Counters, release: int, candidate: bool) -> Traffic:
        return window.traffic(release, candidate)

    def flip(self, release: int, previous: int | None) -> None:
        # On the disk first, for a server that is started again takes what lies there; then in the server, as it is by
        # then: it may have been started again, without the stages of this release.
        serving = {number for number in self._served().values() if number in self.resident()}
        self._repository.load_only({release, *serving})
        if self._repository.live() != Live(release, previous):
            self._repository.flip(release, previous)
        self._load_stages(self._lacking(release))
        served = self._served()
        for name in PIPELINES:
            if served.get(name) != release:
                self._control.load(name)
        served = self._served()
        if wrong := [name for name in PIPELINES if served.get(name) != release]:
            raise ControlFailed(f"{', '.join(wrong)} doesn't answer from release {release} after it was loaded")

    def end_trial(self) -> None:
        for name in self._candidates():
            self._control.unload(name)
        self._repository.remove_candidate()

    def retire(self, keep: tuple[int, ...], drain_s: float) -> str:
        served = set(self._served().values())  # a stage that a loaded pipeline pins takes it along when it goes
        gone = [number for number in self.resident() if number not in keep and number not in served]
        kept = tuple(number for number in self.resident() if number not in gone)
        self._repository.load_only(kept)
        self._load_stages(self._unlike(kept))
        left = self._wait_unloaded(kept, drain_s)
        for number in gone:
            self._repository.remove(number)
        names = ", ".join(map(str, gone)) or "none"
        if left:
            return (
                f"retired: {names}; still held by requests that never ended, until the server restarts: "
                f"{', '.join(left)}"
            )
        return f"retired: {names}"

    def _load_stages(self, names: list[str]) -> None:
        for name in names:
            self._control.load(name)

    def _served(self) -> dict[str, int]:
        """Loaded live pipeline -> the release that it answers from, as the server says."""
        served = {name: self._control.release(name) for name in PIPELINES}
        return {name: release for name, release in served.items() if release is not None}

    def _lacking(self, release: int) -> list[str]:
        """Stages whose version of a release isn't ready."""
        ready = self._ready()
        stages = self._repository.manifests()[release].stages
        return [name for name in STAGES if stages[name].version not in ready[name]]

    def _ready(self) -> dict[str, set[int | None]]:
        index = self._control.index()
        return {name: {e.version for e in index if e.name == name and e.state == "READY"} for name in STAGES}

    def _unlike(self, numbers: tuple[int, ...]) -> list[str]:
        """Stages that aren't ready in just the versions that these releases have."""
        manifests = [m for number, m in self._repository.manifests().items() if number in numbers]
        ready = self._ready()
        return [stage for stage in STAGES if ready[stage] != {m.stages[stage].version for m in manifests}]

    def _candidates(self) -> list[str]:
        """The candidate's pipelines that are loaded."""
        return [e.name for e in self._control.index() if e.name.startswith(CANDIDATE_PREFIX) and e.state == "READY"]

    def _wait_unloaded(self, keep: tuple[int, ...], drain_s: float) -> list[str]:
        """Waits until no stage version but those of `keep` is loaded; names those that still are."""
        manifests = [m for number, m in self._repository.manifests().items() if number in keep]
        deadline = time.monotonic() + drain_s
        while left := [e for e in self._control.index() if _lingers(e, manifests)]:
            if time.monotonic() > deadline:
                break
            time.sleep(POLL_S)
        return [f"{entry.name} version {entry.version}" for entry in left]


def _lingers(entry: IndexEntry, manifests: list[Manifest]) -> bool:
    if entry.name not in STAGES or entry.version is None or entry.state not in ("READY", "UNLOADING"):
        return False
    return all(manifest.stages[entry.name].version != entry.version for manifest in manifests)
