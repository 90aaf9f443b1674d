"""The model repository that a server reads, and how releases come into it, take the traffic and leave.

    releases/3.json                   manifest of every release whose stages lie here
    golden/3/{image,audio,text}       what that release is asked to prove itself
    stages/encode_text/{1,3}/         stage versions, with the configuration that says which of them are loaded
    pipelines -> .pipelines-2         the pipelines that take traffic: this link alone says which release is live
    candidate/candidate_emotion/      the pipelines of a release on trial

Every change leaves a repository from which a server can start, whenever it is cut off: a stage version appears whole,
and one link moves all pipelines together. Nothing here talks to a server; k8s/cmt_rollout says when to do what.

Two locks: one upgrade at a time holds `lock` throughout. What a starting server reads changes under `still` alone, for
moments; whoever starts a server holds that meanwhile, so it reads one state, and never waits for an upgrade's end.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf.text_format import ParseError

from cmt_engine.engine import ENGINES, sha256_of
from cmt_pipeline.constants import ADAPTER_FILE, TRITON_CONFIG_FILE
from cmt_pipeline.limits import Limits
from cmt_pipeline.modality import MODALITIES, Modality
from cmt_pipeline.pipelines import CANDIDATE_PREFIX, PIPELINE_VERSION
from cmt_pipeline.reference import pipeline_files, stage_files, write_files
from cmt_pipeline.release_info import CANARY_SHARE, PREVIOUS_RELEASE, RELEASE, STAMP_FILE, ReleaseStamp
from cmt_pipeline.stages import STAGES
from cmt_pipeline.triton_config import (
    DEFAULT_TUNING,
    VARIANTS_FOLDER,
    Served,
    StageTuning,
    from_pbtxt,
    to_pbtxt,
)
from cmt_release.durable import (
    draft_name,
    exchange,
    point_link,
    publish_folder,
    remove_folder,
    replace_file,
    sync,
    sync_tree,
)
from cmt_release.locks import Locked, only_holder
from cmt_release.manifest import Manifest, StageVersion, read_manifest
from cmt_release.release import Release
from cmt_server.errors import RepositoryBusy, RepositoryError

#: Seen on Triton 2.51: its python backend writes bytecode whatever the environment says, the next poll takes that for
#: a change, and every load of anything restarts the stage. A file of this name keeps Python from making the folder.
NO_BYTECODE = "__pycache__"

STILL_WAIT_S = 900.0  # longer than a server takes to start


@dataclass(frozen=True)
class InstallOptions:
    """limits: what the service accepts; tuning: how each stage runs on this machine."""

    limits: Limits = field(default_factory=Limits)
    tuning: Mapping[str, StageTuning] = field(default_factory=lambda: DEFAULT_TUNING)


@dataclass(frozen=True)
class Live:
    """What the pipelines link to. previous: the release that they answered from before, resident or not."""

    release: int
    previous: int | None


@dataclass(frozen=True)
class Repository:
    """A repository in a folder. Whoever upgrades one holds `lock`."""

    root: Path

    @property
    def stages(self) -> Path:
        return self.root / "stages"

    @property
    def pipelines(self) -> Path:
        return self.root / "pipelines"

    @property
    def candidate(self) -> Path:
        return self.root / "candidate"

    @property
    def model_folders(self) -> tuple[Path, ...]:
        """What tritonserver gets as --model-repository; a flat repository, like that in git, is one folder."""
        if not self.stages.is_dir():
            return (self.root,)
        return (self.stages, self.pipelines, self.candidate)

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Held by the one upgrade that is at work; ends with its process. RepositoryBusy if another has it."""
        return self._held("", 0.0, "is changing {}; wait until it is done")

    def still(self) -> contextlib.AbstractContextManager[None]:
        """Held for one change of what a starting server reads, or while one starts. Waited for; never wait in it."""
        return self._held("-still", STILL_WAIT_S, f"has kept {{}} still for {STILL_WAIT_S:g} s; end it")

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        """Still, with nothing but the live release going to be loaded, while a server starts from it."""
        with self.still():
            live = self.live()
            if live is not None:  # what an upgrade was loading mustn't keep a server from starting
                self._load_only([live.release])
            yield

    def live(self) -> Live | None:
        """Which release the pipelines link to; None where nothing was installed. Raises RepositoryError."""
        path = self.pipelines / "emotion" / TRITON_CONFIG_FILE
        try:
            config = from_pbtxt(_read(path))
            previous = config.parameters[PREVIOUS_RELEASE].string_value
            stamp = ReleaseStamp.from_json(config.parameters[RELEASE].string_value)
            return Live(stamp.release, int(previous) if previous else None)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, ParseError) as error:
            raise RepositoryError(f"{path} can't be read ({error}); serve a release afresh: --release N") from error

    def variant(self) -> str | None:
        """The name of the configurations that the live release is served with; None for the usual ones."""
        live = self.live()
        manifest = self.manifests().get(live.release) if live else None
        return ENGINES[manifest.info.engine].variant if manifest else None

    def manifests(self) -> dict[int, Manifest]:
        """Of every release that lies here, by number. Raises ReleaseError."""
        found = (read_manifest(path) for path in (self.root / "releases").glob("*.json"))
        return {manifest.number: manifest for manifest in sorted(found, key=lambda m: m.number)}

    def golden_files(self, number: int) -> dict[Modality, bytes]:
        """The files that a release's golden answers are for; empty where they don't lie here as its manifest says."""
        manifest, folder = self.manifests()[number], self._golden_folder(number)
        found: dict[Modality, bytes] = {}
        with contextlib.suppress(OSError):
            found = {m: (folder / m).read_bytes() for m in MODALITIES if m in manifest.golden_files}
        same = all(hashlib.sha256(data).hexdigest() == manifest.golden_files[m] for m, data in found.items())
        return found if same else {}

    def install(self, release: Release, options: InstallOptions | None = None) -> None:
        """Replaces the whole repository, in one step, by one that serves this release alone, every file verified first.

        Not for a repository that a server is reading.
        """
        release.verify()
        live = self.live()
        for left in self.root.parent.glob(f".{self.root.name}-*.draft"):
            remove_folder(left)
        draft = Repository(self.root.with_name(f"{draft_name(self.root.name)}.draft"))
        draft._make(release)
        draft._bring(release, release.manifest.stages)
        previous = live.release if live and live.release != release.number else None
        draft._configure(release.manifest, options or InstallOptions(), previous)
        if self.root.exists():
            exchange(draft.root, self.root)
            remove_folder(draft.root)
        else:
            draft.root.rename(self.root)
        sync(self.root.parent)

    def add(self, release: Release) -> None:
        """Lays the stage versions of a release beside those that are there. Nothing is loaded by that.

        Raises RepositoryError where a number is taken by something else, ReleaseError for a damaged release, OSError
        for a full disk.
        """
        known = self.manifests().get(release.number)
        if known is not None and known.digest != release.digest:
            raise RepositoryError(
                f"got release {release.number} ({release.digest[:12]}); {self.root} serves another release "
                f"{release.number} ({known.digest[:12]}). Export or pull it under a number of its own"
            )
        release.verify()
        missing = {}
        for name, stage in release.manifest.stages.items():
            if self.version_folder(name, stage.version).is_dir():
                self._verify(name, stage)
            else:
                missing[name] = stage
        self._bring(release, missing)
        self._enter(release)

    def load_only(self, numbers: Collection[int]) -> None:
        """Lets the stages' configurations name the versions of these releases alone; a load brings them about."""
        with self.still():
            self._load_only(numbers)

    def _load_only(self, numbers: Collection[int]) -> None:
        chosen = [manifest for number, manifest in self.manifests().items() if number in numbers]
        for name in STAGES:
            versions = sorted({manifest.stages[name].version for manifest in chosen})
            variants = (self.stages / name / VARIANTS_FOLDER).glob("*.pbtxt")
            for path in (self.stages / name / TRITON_CONFIG_FILE, *variants):
                self._set_versions(path, versions)

    def write_candidate(self, number: int, canary_share: float) -> None:
        """The pipelines of a release on trial, under names of their own. canary_share: for clients that follow it."""
        served = self._served(number, {CANARY_SHARE: f"{canary_share:g}"})
        for name, content in pipeline_files(served, CANDIDATE_PREFIX).items():
            publish_folder(self.candidate / Path(name).parent, _pipeline_writer(content), self._drafts())

    def remove_candidate(self) -> None:
        """The pipelines of a release on trial go."""
        for folder in self.candidate.iterdir():
            remove_folder(folder, self._drafts())

    def flip(self, number: int, previous: int | None) -> None:
        """All pipelines pin the stages of a release that lies here. One rename: all of them or none."""
        with self.still():
            self._flip(number, previous)

    def _flip(self, number: int, previous: int | None) -> None:
        numbers = [int(path.name.rpartition("-")[2]) for path in self.root.glob(".pipelines-*")]
        target = self.root / f".pipelines-{max(numbers, default=0) + 1}"
        parameters = {} if previous is None else {PREVIOUS_RELEASE: str(previous)}
        files = pipeline_files(self._served(number, parameters))

        def fill(folder: Path) -> None:
            for name, content in files.items():
                (folder / name).parent.mkdir()
                _pipeline_writer(content)((folder / name).parent)

        publish_folder(target, fill, self._drafts())
        point_link(self.pipelines, target.name, self._drafts())
        self._sweep()

    def remove(self, number: int) -> None:
        """A release leaves: its manifest, and every stage version that no other release here needs."""
        with self.still():
            self._manifest_file(number).unlink(missing_ok=True)
            self._sweep()

    def version_folder(self, stage: str, version: int) -> Path:
        """Where a stage version lies."""
        return self.stages / stage / str(version)

    def touch(self, stage: str, version: int) -> None:
        """Lets the next load start this stage version anew, though nothing in it changed."""
        os.utime(self.version_folder(stage, version) / ADAPTER_FILE)

    def _make(self, release: Release) -> None:
        folders = (self._manifest_file(0).parent, self._golden_folder(0).parent, self.candidate)
        for folder in (*folders, *map(self.stages.joinpath, STAGES)):
            folder.mkdir(parents=True)
        self._enter(release)

    def _enter(self, release: Release) -> None:
        """A release's golden files, then its manifest: with that it is here."""
        files = release.golden_files()

        def fill(folder: Path) -> None:
            for modality, data in files.items():
                (folder / modality).write_bytes(data)

        self._golden_folder(0).parent.mkdir(exist_ok=True)
        publish_folder(self._golden_folder(release.number), fill, self._drafts())
        replace_file(self._manifest_file(release.number), release.manifest.to_json().encode(), self._drafts())

    def _bring(self, release: Release, stages: Mapping[str, StageVersion]) -> None:
        for name, stage in stages.items():
            source = release.stage_folder(name)

            def fill(folder: Path, name: str = name, source: Path = source) -> None:
                # Copies: a link elsewhere would change the file's ctime, which Triton takes for a new version.
                try:
                    shutil.copytree(source, folder, dirs_exist_ok=True)
                except shutil.Error as error:  # of every file that failed; the first says enough
                    raise OSError(error.args[0][0][2]) from error
                (folder / NO_BYTECODE).touch()
                if STAGES[name].stamped:
                    (folder / STAMP_FILE).write_text(ReleaseStamp.of(release.manifest.info, release.digest).to_json())

            publish_folder(self.version_folder(name, stage.version), fill, self._drafts())
            self._verify(name, stage)

    def _configure(self, manifest: Manifest, options: InstallOptions, previous: int | None) -> None:
        """Writes everything that isn't an artefact, for a server that serves this release alone."""
        info = manifest.info
        served = Served(
            versions={name: (stage.version,) for name, stage in manifest.stages.items()},
            labels=len(info.labels),
            sizes=manifest.features,
            limits=options.limits,
            tuning=options.tuning,
        )
        engine = ENGINES[info.engine]
        variants = {} if engine.variant is None else {engine.variant: engine.stage_config}
        write_files(self.stages, stage_files(served, info.labels, variants))
        sync_tree(self.stages)
        self._flip(manifest.number, previous)

    def _served(self, number: int, parameters: Mapping[str, str]) -> Served:
        """What the pipelines of a release that lies here say."""
        manifest = self.manifests()[number]
        return Served(
            pins={name: stage.version for name, stage in manifest.stages.items()},
            labels=len(manifest.info.labels),
            parameters={RELEASE: ReleaseStamp.of(manifest.info, manifest.digest).to_json(), **parameters},
        )

    def _verify(self, name: str, stage: StageVersion) -> None:
        folder = self.version_folder(name, stage.version)
        for path, sha256 in stage.files.items():
            got = sha256_of(folder / path) if (folder / path).is_file() else None
            if got != sha256:
                raise RepositoryError(
                    f"{folder / path} has sha256 {got}, the manifest says {sha256}: damaged, or another release "
                    f"brought version {stage.version} of {name}. Serve a release afresh (--release N), or export anew"
                )

    def _set_versions(self, path: Path, versions: list[int]) -> None:
        config = from_pbtxt(path.read_text())
        if list(config.version_policy.specific.versions) != versions:
            config.version_policy.specific.versions[:] = versions
            replace_file(path, to_pbtxt(config).encode(), self._drafts())

    def _sweep(self) -> None:
        """Removes stage versions and golden files that no manifest names, pipelines that no link names, and drafts."""
        manifests = self.manifests().values()
        for folder in (self.root / "golden").glob("*"):
            if folder.name not in {str(manifest.number) for manifest in manifests}:
                remove_folder(folder, self._drafts())
        for name in STAGES:
            needed = {str(manifest.stages[name].version) for manifest in manifests}
            for folder in (self.stages / name).iterdir():
                if folder.name.isdigit() and folder.name not in needed:
                    remove_folder(folder, self._drafts())
        linked = os.readlink(self.pipelines) if self.pipelines.is_symlink() else None
        for folder in self.root.glob(".pipelines-*"):
            if folder.name != linked:
                remove_folder(folder)
        remove_folder(self._drafts())

    def _manifest_file(self, number: int) -> Path:
        return self.root / "releases" / f"{number}.json"

    def _golden_folder(self, number: int) -> Path:
        return self.root / "golden" / str(number)

    @contextlib.contextmanager
    def _held(self, which: str, wait_s: float, told: str) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(only_holder(self.root.with_name(f".{self.root.name}{which}.lock"), wait_s))
            except Locked as error:
                raise RepositoryBusy(f"process {error.holder} {told.format(self.root)}") from None
            yield

    def _drafts(self) -> Path:
        folder = self.root / ".drafts"
        folder.mkdir(exist_ok=True)
        return folder


def _read(path: Path) -> str:
    """A pipeline's configuration; once more where a flip took the folder away between link and file."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return path.read_text()


def _pipeline_writer(config: bytes) -> Callable[[Path], None]:
    """Fills a pipeline's folder: its configuration, and the folder of its version, which Triton wants."""

    def fill(folder: Path) -> None:
        (folder / TRITON_CONFIG_FILE).write_bytes(config)
        (folder / str(PIPELINE_VERSION)).mkdir()

    return fill
