"""A small world for upgrades: a real repository on disk, a played server, drivers, and one thing after another failing.

Every call of the server's control and every write to the disk is a point at which something can go wrong: the
connection is lost before or after the call took effect, the server says no, dies, or the driver is killed.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import pytest
from tritonclient.grpc.model_config_pb2 import ModelConfig

import played_triton
from cmt_client import ControlFailed, DeadlineExceeded, FakeTransport, ServerUnavailable
from cmt_client.fake import LABELS
from cmt_client.operations import ControlOperation, LoadModel, Operation
from cmt_pipeline import reference, triton_config
from cmt_pipeline.labels import DEFAULT_LABEL_SET
from cmt_pipeline.modality import SUBSETS
from cmt_pipeline.pipelines import PIPELINES
from cmt_pipeline.release_info import ReleaseInfo, ReleaseStamp
from cmt_pipeline.stages import READY, STAGES
from cmt_release import durable
from cmt_release.manifest import Manifest
from cmt_release.release import GoldenAnswer, Release, draft_folder, release_from_engines
from cmt_rollout import golden, rollout, server_target, trial
from cmt_rollout.options import Event, RolloutOptions
from cmt_rollout.release_checks import live_like
from cmt_rollout.server_target import ServerTarget
from cmt_server import repository as repository_module
from cmt_server.repository import Repository
from played_triton import NAN, UNLOADABLE, PlayedTriton

T = TypeVar("T")

Kind = Literal["lost before", "lost after", "no", "late", "server dies", "killed", "disk full", "killed after"]
KINDS: tuple[Kind, ...] = get_args(Kind)
CALL_KINDS: tuple[Kind, ...] = ("lost before", "lost after", "no", "late", "server dies", "killed")
WRITE_KINDS: tuple[Kind, ...] = ("disk full", "killed", "killed after", "server dies")
WRITES = ("replace_file", "publish_folder", "point_link", "remove_folder")
GOES_ON = RolloutOptions(canary_s=0.001, watch_s=0.0, samples=7, max_flips=1, max_distance=1, max_slowdown=1e9)
DEAD_CALLS = 2  # after which a server that died has been started again
FILES = {"image": b"\xff\xd8 a picture", "audio": b"RIFF a sound", "text": b"Well."}


class Killed(BaseException):
    """The driver was killed: nothing that it would still do has an effect."""


@dataclass(frozen=True)
class Fault:
    """at: which point, counted from the driver's start."""

    at: int
    kind: Kind


@dataclass
class World:
    """releases: by number; 1 is served at first. points: what the last driver came by, call or write, in order."""

    folder: Path
    releases: dict[int, Release]
    triton: PlayedTriton
    faults: list[Fault] = field(default_factory=list)
    points: list[str] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    told: Callable[[Event], object] = lambda _: None
    injected: int = 0
    _dead_for: int = 0
    _killed: bool = False
    _at_work: bool = False

    @property
    def repository(self) -> Repository:
        return self.triton.repository

    def upgrade(self, number: int, faults: Sequence[Fault] = (), options: RolloutOptions = GOES_ON) -> str:
        """`passed`, or the error's name. Asserts that what is reported was shown."""
        with self._driver(faults) as target:
            said = self._outcome(lambda: rollout.upgrade([target], self.releases[number], options, self._report))
        if said == "passed":
            self._shown(number)
        return said

    def rollback(self, faults: Sequence[Fault] = ()) -> str:
        before = self.repository.live()
        with self._driver(faults) as target:
            said = self._outcome(lambda: rollout.rollback([target], self.releases.__getitem__, self._report))
        if said == "passed" and before is not None:
            self._shown(before.previous or 0)
        return said

    def look_after(self) -> None:
        """As the supervisor does: a server that died is started again."""
        if not self.triton.alive:
            with self.repository.starting():
                self.triton.start()

    def call(self, operation: Operation[T], timeout_s: float) -> T:
        """The transport of drivers."""
        kind = self._next(f"{type(operation).__name__} {getattr(operation, 'model', '')}")
        if not self.triton.alive:
            self._dead_for += 1
            if self._dead_for > DEAD_CALLS:
                self.look_after()
        if kind == "server dies":
            self._dies()
        if kind in ("lost before", "killed"):
            raise ServerUnavailable("the connection was lost") if kind == "lost before" else self._kill()
        if kind == "no" and isinstance(operation, ControlOperation):
            raise ControlFailed("no")
        answer = self.triton.call(operation, timeout_s)
        if isinstance(operation, ControlOperation):
            self.check_traffic()
        if kind == "lost after":
            raise ServerUnavailable("the connection was lost, and the answer with it")
        if kind == "late" and isinstance(operation, LoadModel):
            raise DeadlineExceeded("it took too long, and goes on")
        return answer

    def close(self) -> None:
        """Nothing is held."""

    def write(self, name: str, work: Callable[[], T]) -> T:
        """A write to the disk."""
        if not self._at_work:
            return work()
        kind = self._next(name)
        if kind == "disk full":
            raise OSError(28, "No space left on device")
        if kind == "server dies":
            self._dies()
        if kind == "killed":
            raise self._kill()
        done = work()
        if kind == "killed after":
            raise self._kill()
        return done

    def check_traffic(self) -> None:
        """While the server lives every pipeline answers, from one whole release that may take traffic."""
        if self.triton.alive:
            served = {name: self.triton.serves(name) for name in PIPELINES}
            if wrong := {name: number for name, number in served.items() if not number or number in BAD}:
                self.triton.wrongs.append(f"pipelines answer from no release that may take traffic: {wrong}")
        assert not self.triton.wrongs, (self.triton.wrongs[0], self.faults, self.points[-5:])

    def settle(self) -> None:
        """What an operator sees when the dust has settled; and server and disk agree once the next driver was there."""
        self.look_after()
        self.check_traffic()
        live = self.repository.live()
        assert live is not None
        assert self.upgrade(live.release) == "passed", self.events[-1]
        served = {self.triton.serves(name) for name in PIPELINES}
        now = self.repository.live()
        assert now is not None
        assert (served, set(self.repository.manifests())) == ({now.release}, {now.release})
        assert not list(self.repository.candidate.iterdir())
        assert set(self.triton.ensembles) == set(PIPELINES)
        stages = self.releases[now.release].manifest.stages
        assert {name: set(versions) for name, versions in self.triton.stages.items()} == {
            name: {stages[name].version} for name in STAGES
        }

    def _report(self, event: Event) -> None:
        self.events.append(event)
        self.told(event)

    def _shown(self, number: int) -> None:
        """That all pipelines serve the release that was reported, and that this was seen, after all that was done."""
        served = {name: self.triton.serves(name) for name in PIPELINES}
        expected = dict.fromkeys(PIPELINES, number)
        assert served == expected, f"pipelines serve {served}; reported: {self.events[-1]}, after {self.faults}"
        self._seen(expected)

    def _seen(self, expected: dict[str, int]) -> None:
        asked = self.triton.shown
        assert asked == expected, f"golden requests showed {asked}; reported: {self.events[-1]}, after {self.faults}"

    @contextlib.contextmanager
    def _driver(self, faults: Sequence[Fault]) -> Iterator[ServerTarget]:
        self.faults, self.points, self.events = list(faults), [], []
        self._killed, self._at_work = False, True
        try:
            yield ServerTarget("grpc://played:1", self.repository, None, connect=lambda _: self)
        finally:
            self._at_work = False

    def _outcome(self, work: Callable[[], None]) -> str:
        try:
            work()
        except (Exception, Killed) as error:
            if isinstance(error, AssertionError):
                raise
            said = type(error).__name__
        else:
            said = "passed"
        self.check_traffic()
        self._check_way_back()
        return said

    def _check_way_back(self) -> None:
        """A way back that is reported was shown."""
        last = self.events[-1] if self.events else None
        if last and (last.step, last.state) == ("rollback", "passed") and self.triton.alive:
            live = self.repository.live()
            assert live is not None
            self._shown(live.release)

    def _next(self, what: str) -> Kind | None:
        if self._killed:
            raise Killed
        self.points.append(what)
        kind = next((fault.kind for fault in self.faults if fault.at == len(self.points)), None)
        self.injected += kind is not None
        return kind

    def _dies(self) -> None:
        self.triton.die()
        self._dead_for = 0

    def _kill(self) -> Killed:
        self._killed = True
        return Killed()


Drive = Callable[[World, Sequence[Fault]], object]


def explore(fresh: Callable[[], World], drive: Drive, first: Sequence[Fault] = (), stride: int = 1) -> tuple[int, int]:
    """Drives world after world, with each fault at each point that comes after `first`, and sees that all ends well.

    stride: takes every so manieth of the faults. How many points there are, and how many faults were tried.
    """
    world = fresh()
    drive(world, first)
    points, begin = list(enumerate(world.points, 1)), first[-1].at if first else 0
    possible = [
        Fault(at, kind)
        for at, point in points
        if at > begin
        for kind in (WRITE_KINDS if point.split()[0] in WRITES else CALL_KINDS)
    ]
    for fault in possible[::stride]:
        world = fresh()
        drive(world, [*first, fault])
        world.settle()
    return len(points) - begin, len(possible[::stride])


#: Releases that must never take traffic.
BAD = (4, 5)


def make_releases(store: Path) -> dict[int, Release]:
    """1 to 3 are sound and share their text encoder; 4 answers NaN, 5 doesn't load."""
    contents = {
        1: {},
        2: {name: "second" for name in STAGES if name != "encode_text"},
        3: {name: "third" for name in STAGES if name != "encode_text"},
        4: dict.fromkeys(STAGES, "fourth") | {"fuse": NAN},
        5: dict.fromkeys(STAGES, "fifth") | {"encode_image": UNLOADABLE},
    }
    return {number: _make(store, number, content) for number, content in contents.items()}


def _make(store: Path, number: int, contents: dict[str, str]) -> Release:
    with draft_folder(store) as draft:
        for name in STAGES:
            folder = draft / "stages" / name
            folder.mkdir(parents=True)
            (folder / "model.bin").write_text(f"{name} {contents.get(name, '')}")
        (draft / "golden").mkdir()
        for modality, data in FILES.items():
            (draft / "golden" / modality).write_bytes(data)
        others = 0.4 / (len(LABELS) - 1)
        probabilities = {label: 0.6 if label == LABELS[number] else others for label in LABELS}
        return release_from_engines(
            store,
            draft,
            INFO,
            parity=[],
            golden=[GoldenAnswer(subset, probabilities, 0.5, -0.25) for subset in SUBSETS],
            golden_tolerance=1e-4,
            preprocess="ab" * 32,
            versions={},
            recipe=str(number),
        )


INFO = ReleaseInfo(0, DEFAULT_LABEL_SET, LABELS, "mini", "onnxruntime", "fp32", trained=False)


@contextlib.contextmanager
def worlds(folder: Path) -> Iterator[Callable[[], World]]:
    """Gives worlds, each on a repository of its own that serves release 1; nothing in them waits for a disk."""
    with pytest.MonkeyPatch.context() as patch:
        made: list[World] = []
        _quicken(patch, made)
        releases = make_releases(folder / "releases")
        template = folder / "template"
        Repository(template).install(releases[1])

        def fresh() -> World:
            place = folder / "repository"
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(template, place, symlinks=True)
            triton = PlayedTriton(Repository(place))
            for number, release in releases.items():
                transport = FakeTransport(ReleaseStamp.of(release.manifest.info, release.digest), LABELS[number])
                transport.candidate = transport.release
                triton.know(release, transport)
            triton.start()
            made[:] = [World(folder, releases, triton)]
            return made[0]

        yield fresh


class Clock:
    """In place of `time`: each look at it comes a second after the one before."""

    def __init__(self) -> None:
        self._looks = itertools.count()

    def monotonic(self) -> float:
        return float(next(self._looks))

    def sleep(self, _seconds: float) -> None:
        """No time passes."""


def _quicken(patch: pytest.MonkeyPatch, made: list[World]) -> None:
    """No waiting, and a clock that moves as it is looked at, so that points are the same on a machine of any speed;
    ready tensors and requests made once; writes are points of the world that is at work."""
    for module in (rollout, trial, server_target):
        patch.setattr(module, "time", Clock())
    patch.setattr(rollout, "COMES_BACK_S", 5.0)
    patch.setattr(rollout, "UNJUDGED", replace(rollout.UNJUDGED, watch_s=0, samples=7))
    patch.setattr(server_target, "preflight", lambda *_: [])
    tensors = {
        modality: {spec.name: np.ones([1, *(axis.sizes[0] for axis in spec.axes)], spec.numpy_dtype) for spec in specs}
        for modality, specs in READY.items()
    }
    patch.setattr(golden, "ready_tensors", lambda *_: tensors)
    items = live_like(GOES_ON)
    patch.setattr(trial, "live_like", lambda *_: items)
    _remember(patch)
    patch.setattr(durable, "sync", lambda _: None)
    patch.setattr(repository_module, "sync", lambda _: None)
    for name in WRITES:
        patch.setattr(repository_module, name, _as_point(getattr(durable, name), made))


def _remember(patch: pytest.MonkeyPatch) -> None:
    """Configurations and manifests are read and written again and again: each text once."""

    @functools.cache
    def parsed(text: str) -> bytes:
        return bytes(triton_config.from_pbtxt(text).SerializeToString(deterministic=True))

    @functools.cache
    def written(data: bytes) -> str:
        return to_pbtxt(ModelConfig.FromString(data))

    to_pbtxt, read = triton_config.to_pbtxt, functools.cache(Manifest.from_json)
    for module in (repository_module, played_triton):
        patch.setattr(module, "from_pbtxt", lambda text: ModelConfig.FromString(parsed(text)))
    for module in (repository_module, reference):
        patch.setattr(module, "to_pbtxt", lambda config: written(config.SerializeToString(deterministic=True)))
    patch.setattr(Manifest, "from_json", lambda text, source="": read(text))


def _as_point(work: Callable[..., T], made: list[World]) -> Callable[..., T]:
    def write(*arguments: Any) -> T:
        name = f"{work.__name__} {Path(arguments[0]).name}"
        return made[0].write(name, lambda: work(*arguments)) if made else work(*arguments)

    return write
