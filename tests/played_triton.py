"""A tritonserver's control, played, over a real repository on disk: as unkind as the real 2.51, and quick.

What it does was seen on the real one (docs and tests/server/test_triton.py): a load takes what the disk says at that
moment; a load that fails leaves what was loaded; loading a stage loads every ensemble above it again, with the
configuration that it had; an ensemble whose step pins a version that isn't loaded goes down; unloading nobody knows is
silent; a start takes the disk and gives up where a pipeline can't be had.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cmt_client import ControlFailed, FakeTransport, InferenceFailed, ServerUnavailable, UnknownPipeline
from cmt_client.operations import (
    GetIndex,
    GetModelConfig,
    GetStatistics,
    IndexEntry,
    Infer,
    LoadModel,
    ModelReady,
    ModelStatistics,
    Operation,
    Timing,
    UnloadModel,
)
from cmt_pipeline.pipelines import PIPELINES
from cmt_pipeline.stages import STAGES
from cmt_pipeline.triton_config import from_pbtxt
from cmt_release.release import Release
from cmt_server.repository import Repository

T = TypeVar("T")

UNLOADABLE = "no engine"
NAN = "answers NaN"


@dataclass(frozen=True)
class Ensemble:
    """A loaded pipeline: its version and the stage versions that its steps pin."""

    version: int
    pins: Mapping[str, int]


@dataclass
class PlayedTriton:
    """transports: by release, the answers that it gives. shown: pipelines whose answers were asked for, and came, since
    anything was last loaded, unloaded or started; with the release that gave them. wrongs: what must never be."""

    repository: Repository
    alive: bool = False
    stages: dict[str, dict[int, str]] = field(default_factory=dict)  # stage -> version -> what its file holds
    ensembles: dict[str, Ensemble] = field(default_factory=dict)
    counts: dict[str, list[int]] = field(default_factory=dict)  # pipeline -> answered, failed since it was loaded
    shown: dict[str, int] = field(default_factory=dict)
    wrongs: list[str] = field(default_factory=list)
    releases: dict[int, tuple[dict[str, str], FakeTransport]] = field(default_factory=dict)  # what its stages hold

    def know(self, release: Release, transport: FakeTransport) -> None:
        """Lets it recognise a release by what lies in its stages."""
        contents = {name: (release.stage_folder(name) / "model.bin").read_text() for name in STAGES}
        self.releases[release.number] = (contents, transport)

    def start(self) -> None:
        """From what lies on the disk. What can't be had is a wrong: a server must always be able to start."""
        self.alive, self.stages, self.ensembles = True, {}, {}
        self.shown.clear()
        try:
            for name in STAGES:
                self.stages[name] = self._read_stage(name)
            for name in PIPELINES:
                self.ensembles[name] = self._read_pipeline(name)
        except ControlFailed as error:
            self.wrongs.append(f"it can't start from the disk: {error}")
            self.alive = False

    def die(self) -> None:
        self.alive, self.stages, self.ensembles = False, {}, {}

    def serves(self, pipeline: str) -> int | None:
        """The release whose stages a loaded pipeline is made of; None if it isn't loaded, 0 if of more than one."""
        ensemble = self.ensembles.get(pipeline)
        if ensemble is None:
            return None
        held = {stage: self.stages.get(stage, {}).get(version) for stage, version in ensemble.pins.items()}
        for number, (contents, _) in self.releases.items():
            if all(held[name] == contents[name] for name in held):
                return number
        return 0

    def call(self, operation: Operation[T], timeout_s: float) -> T:
        if not self.alive:
            raise ServerUnavailable("nobody answers")
        answer: T = self._answer(operation)
        return answer

    def _answer(self, operation: Any) -> Any:
        if isinstance(operation, LoadModel):
            return self._load(operation.model)
        if isinstance(operation, UnloadModel):
            self.shown.clear()
            return self.ensembles.pop(operation.model, None) and None
        if isinstance(operation, GetIndex):
            return self._index()
        if isinstance(operation, GetStatistics):
            return tuple(self._statistics(name) for name in self._loaded(operation.model))
        if isinstance(operation, ModelReady):
            return operation.model in self.ensembles
        if isinstance(operation, GetModelConfig):
            return self._of(operation.model)[2].call(operation, 1.0)
        assert isinstance(operation, Infer), operation
        return self._infer(operation)

    def _load(self, name: str) -> None:
        self.shown.clear()
        if name not in STAGES:
            self.ensembles.pop(name, None)  # one that can't be loaded takes the one that was along
            self.ensembles[name] = self._read_pipeline(name)
            self.counts[name] = [0, 0]
            return
        self.stages[name] = self._read_stage(name)
        for above in [n for n, ensemble in self.ensembles.items() if name in ensemble.pins]:
            self.counts[above] = [0, 0]
            folder = self._pipeline_folder(above) / str(self.ensembles[above].version)
            if not folder.is_dir() or not self._pinned(self.ensembles[above]):
                del self.ensembles[above]

    def _read_stage(self, name: str) -> dict[int, str]:
        folder = self.repository.stages / name
        try:
            versions = from_pbtxt((folder / "config.pbtxt").read_text()).version_policy.specific.versions
            found = {version: (folder / str(version) / "model.bin").read_text() for version in versions}
        except OSError as error:
            raise ControlFailed(f"load failed for model '{name}': {error}") from error
        if any(content.endswith(UNLOADABLE) for content in found.values()):
            raise ControlFailed(f"load failed for model '{name}': it doesn't open as an engine")
        return found

    def _read_pipeline(self, name: str) -> Ensemble:
        try:
            config = from_pbtxt((self._pipeline_folder(name) / "config.pbtxt").read_text())
        except OSError as error:
            raise ControlFailed(f"failed to load '{name}': {error}") from error
        version = config.version_policy.specific.versions[0]
        ensemble = Ensemble(version, {s.model_name: s.model_version for s in config.ensemble_scheduling.step})
        if not (self._pipeline_folder(name) / str(version)).is_dir() or not self._pinned(ensemble):
            raise ControlFailed(f"failed to load '{name}': a step's version isn't available")
        return ensemble

    def _pinned(self, ensemble: Ensemble) -> bool:
        return all(version in self.stages.get(stage, {}) for stage, version in ensemble.pins.items())

    def _pipeline_folder(self, name: str) -> Any:
        return (self.repository.pipelines if name in PIPELINES else self.repository.candidate) / name

    def _index(self) -> tuple[IndexEntry, ...]:
        stages = [(name, version) for name, versions in self.stages.items() for version in versions]
        ensembles = [(name, ensemble.version) for name, ensemble in self.ensembles.items()]
        return tuple(IndexEntry(name, version, "READY", "") for name, version in (*stages, *ensembles))

    def _loaded(self, model: str) -> list[str]:
        if not model:
            return list(self.ensembles)
        if model not in self.ensembles:
            raise UnknownPipeline(f"Request for unknown model: '{model}' is not found")
        return [model]

    def _statistics(self, name: str) -> ModelStatistics:
        answered, failed = self.counts.get(name, [0, 0])
        took, none = Timing(answered, answered * 1_000_000), Timing()
        version = self.ensembles[name].version
        return ModelStatistics(name, version, answered, answered, took, Timing(failed), none, none, took, none)

    def _of(self, model: str) -> tuple[int, dict[str, str], FakeTransport]:
        self._loaded(model)
        number = self.serves(model)
        if not number:
            self.wrongs.append(f"{model} is made of the stages of more than one release")
            raise InferenceFailed(f"{model} is made of more than one release")
        return number, *self.releases[number]

    def _infer(self, request: Infer) -> Any:
        number, contents, transport = self._of(request.model)
        counts = self.counts.setdefault(request.model, [0, 0])
        if contents["fuse"].endswith(NAN):
            counts[1] += 1
            raise InferenceFailed("got NaN or infinity")
        counts[0] += 1
        self.shown[request.model] = number
        return transport.call(request, 1.0)
