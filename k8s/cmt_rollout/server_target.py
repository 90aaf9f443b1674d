"""ServerTarget: one Triton server and the repository that it reads."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager

from cmt_client import ControlFailed, EmotionClient, ModelControl
from cmt_client.operations import IndexEntry
from cmt_pipeline.pipelines import CANDIDATE_PREFIX, PIPELINES, candidate_of
from cmt_pipeline.stages import STAGES
from cmt_release.manifest import Manifest
from cmt_release.release import Release
from cmt_rollout.preflight import preflight
from cmt_rollout.target import Traffic
from cmt_server.errors import RepositoryError
from cmt_server.repository import Repository

TIMEOUT_S = 30.0
POLL_S = 0.1


class ServerTarget:
    """A server whose repository this process can write to.

    What is the case is read from the repository and the server alone, so that another process can go on at any moment.
    """

    def __init__(self, url: str, repository: Repository, token: str | None) -> None:
        self._url = url
        self._repository = repository
        self._control = ModelControl(url, token=token)

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
        live = self.live()
        done = []
        if late := [name for name in PIPELINES if self._control.release(name) != live]:
            self._load_pipelines(tuple(late), live)
            done.append(f"{len(late)} pipelines brought to release {live}, which the repository says is live")
        if self._candidates():
            self.end_trial()
            done.append("the pipelines of a release on trial removed")
        keep = tuple(number for number in self.resident() if number in (live, self.previous(), wanted))
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
        for stage in self._unlike(both):
            self._control.load(stage)
        if missing := self._unlike(both):
            raise ControlFailed(f"{', '.join(missing)} isn't ready in all its versions after it was loaded")
        self.share(release, 0.0)

    def share(self, release: Release, canary_share: float) -> None:
        self._repository.write_candidate(release.number, canary_share)
        for name in PIPELINES:
            self._control.load(candidate_of(name))

    def client(self, candidate: bool) -> EmotionClient:
        return EmotionClient(self._url, timeout_s=TIMEOUT_S, retries=0, canary="only" if candidate else "off")

    def traffic(self, candidate: bool) -> Traffic:
        prefix = CANDIDATE_PREFIX if candidate else ""
        names = {f"{prefix}{name}" for name in PIPELINES}
        found = [s for s in self._control.statistics() if s.name in names]
        return Traffic(sum(s.success.count for s in found), sum(s.fail.count for s in found))

    def flip(self, release: int, previous: int | None) -> None:
        self._repository.flip(release, previous)
        self._load_pipelines(tuple(PIPELINES), release)

    def end_trial(self) -> None:
        for name in self._candidates():
            self._control.unload(name)
        self._repository.remove_candidate()

    def retire(self, keep: tuple[int, ...], drain_s: float) -> str:
        gone = [number for number in self.resident() if number not in keep]
        self._repository.load_only(keep)
        for stage in self._unlike(keep):
            self._control.load(stage)
        left = self._wait_unloaded(keep, drain_s)
        for number in gone:
            self._repository.remove(number)
        names = ", ".join(map(str, gone)) or "none"
        if left:
            return (
                f"retired: {names}; still held by requests that never ended, until the server restarts: "
                f"{', '.join(left)}"
            )
        return f"retired: {names}"

    def _load_pipelines(self, names: tuple[str, ...], release: int) -> None:
        for name in names:
            self._control.load(name)
        if wrong := [name for name in names if self._control.release(name) != release]:
            raise ControlFailed(f"{', '.join(wrong)} doesn't answer from release {release} after it was loaded")

    def _unlike(self, numbers: tuple[int, ...]) -> list[str]:
        """Stages that aren't ready in just the versions that these releases have."""
        manifests = [m for number, m in self._repository.manifests().items() if number in numbers]
        index = self._control.index()
        ready = {stage: {e.version for e in index if e.name == stage and e.state == "READY"} for stage in STAGES}
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
