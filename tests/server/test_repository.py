"""The repository that a server reads: releases come, take the traffic and leave; a kill at any moment harms none."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from tritonclient.grpc.model_config_pb2 import ModelInstanceGroup

from cmt_pipeline.pipelines import PIPELINES
from cmt_pipeline.release_info import ReleaseStamp
from cmt_pipeline.stages import STAGES
from cmt_pipeline.triton_config import StageTuning, from_pbtxt
from cmt_release.release import Release, ReleaseError
from cmt_server.errors import RepositoryBusy, RepositoryError
from cmt_server.options import ServerOptions, command_line
from cmt_server.repository import InstallOptions, Live, Repository
from small_releases import make, rewrite


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "releases"


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repository")


def two(store: Path) -> tuple[Release, Release]:
    """The second brings `fuse` and shares the rest."""
    return make(store), make(store, fuse="new")


def loaded(repository: Repository, stage: str) -> list[int]:
    """The versions that the stage's configuration names."""
    text = (repository.stages / stage / "config.pbtxt").read_text()
    return list(from_pbtxt(text).version_policy.specific.versions)


def versions_there(repository: Repository, stage: str) -> set[str]:
    return {path.name for path in (repository.stages / stage).iterdir() if path.name.isdigit()}


def pins(repository: Repository, folder: str = "pipelines", prefix: str = "") -> set[tuple[int, int]]:
    """(release that the pipeline says answers, version of `fuse` that it pins), over all pipelines."""
    found = set()
    for name in PIPELINES:
        config = from_pbtxt((repository.root / folder / f"{prefix}{name}" / "config.pbtxt").read_text())
        versions = {step.model_name: step.model_version for step in config.ensemble_scheduling.step}
        assert list(config.version_policy.specific.versions) == [1]  # whatever the release
        assert (repository.root / folder / f"{prefix}{name}" / "1").is_dir()
        stamp = ReleaseStamp.from_json(config.parameters["release"].string_value)
        for stage in ("preprocess", "check"):
            assert stamp == stamp_of(repository, stage, versions.get(stage, stamp.release))
        found.add((stamp.release, versions["fuse"]))
    return found


def stamp_of(repository: Repository, stage: str, version: int) -> ReleaseStamp:
    """What a stage version says of the release that it answers for."""
    return ReleaseStamp.from_json((repository.version_folder(stage, version) / "release.json").read_text())


def drafts(repository: Repository) -> list[str]:
    return [
        path.name for path in repository.root.iterdir() if path.name.startswith(".") and "pipelines" not in path.name
    ]


def test_a_release_is_installed_whole(store: Path, repository: Repository) -> None:
    assert repository.live() is None
    release = make(store)
    repository.install(release)
    assert repository.live() == Live(1, None)
    assert repository.manifests() == {1: release.manifest}
    assert pins(repository) == {(1, 1)}
    for name in STAGES:
        assert loaded(repository, name) == [1]
        assert (repository.version_folder(name, 1) / "model.bin").read_text() == f"{name} "
        assert (repository.version_folder(name, 1) / "__pycache__").is_file()  # so that Python can't make the folder
    assert [folder.name for folder in repository.model_folders] == ["stages", "pipelines", "candidate"]
    assert not drafts(repository)


def test_what_is_served_doesnt_share_its_files_with_the_store(store: Path, repository: Repository) -> None:
    """A link made elsewhere changes a file's ctime, which Triton takes for a new version and loads again."""
    release = make(store)
    repository.install(release)
    served = repository.version_folder("fuse", 1) / "model.bin"
    assert served.stat().st_nlink == 1


def test_a_release_comes_beside_takes_over_and_the_old_one_leaves(store: Path, repository: Repository) -> None:
    first, second = two(store)
    repository.install(first)
    repository.add(second)
    assert loaded(repository, "fuse") == [1]  # lying there loads nothing
    repository.load_only([1, 2])
    assert (loaded(repository, "fuse"), loaded(repository, "encode_text")) == ([1, 2], [1])
    repository.write_candidate(2, 0.25)
    assert pins(repository, "candidate", "candidate_") == {(2, 2)}
    assert pins(repository) == {(1, 1)}

    repository.flip(2, previous=1)
    assert (repository.live(), pins(repository)) == (Live(2, 1), {(2, 2)})
    repository.remove_candidate()
    assert not list(repository.candidate.iterdir())
    repository.load_only([2])
    repository.remove(1)
    assert (loaded(repository, "fuse"), versions_there(repository, "fuse")) == ([2], {"2"})
    assert (loaded(repository, "check"), versions_there(repository, "check")) == ([2], {"2"})
    assert (loaded(repository, "encode_text"), versions_there(repository, "encode_text")) == (
        [1],
        {"1"},
    )  # still needed
    assert list(repository.manifests()) == [2]
    assert len(list(repository.root.glob(".pipelines-*"))) == 1
    assert not drafts(repository)


def test_everything_may_be_repeated(store: Path, repository: Repository) -> None:
    first, second = two(store)
    repository.install(first)
    for _ in range(2):
        repository.add(second)
        repository.load_only([1, 2])
        repository.write_candidate(2, 0.0)
    for _ in range(2):
        repository.flip(2, 1)
    for _ in range(2):
        repository.remove_candidate()
        repository.remove(1)
    assert (repository.live(), list(repository.manifests())) == (Live(2, 1), [2])


def test_a_stage_that_a_request_meets_first_says_its_release(store: Path, repository: Repository) -> None:
    """Though both releases have the same files of it: an answer names the release that its pipeline is pinned to."""
    first, second = two(store)
    repository.install(first)
    repository.add(second)
    for release in (first, second):
        for stage in ("preprocess", "check"):
            stamp = stamp_of(repository, stage, release.number)
            assert (stamp.release, stamp.digest, stamp.labels) == (release.number, release.digest, ("joy", "anger"))
    repository.flip(2, 1)
    config = from_pbtxt((repository.pipelines / "emotion" / "config.pbtxt").read_text())
    assert {"release", "previous_release"} == set(config.parameters)


def test_a_damaged_release_stays_out(store: Path, repository: Repository) -> None:
    first, second = two(store)
    repository.install(first)
    rewrite(second.stage_folder("fuse") / "model.bin", b"damaged")
    with pytest.raises(ReleaseError, match=r"fuse/model\.bin has sha256"):
        repository.add(second)
    assert list(repository.manifests()) == [1]
    assert versions_there(repository, "fuse") == {"1"}


def test_a_version_that_was_damaged_where_it_is_served_is_noticed(store: Path, repository: Repository) -> None:
    first, second = two(store)
    repository.install(first)
    rewrite(repository.version_folder("encode_text", 1) / "model.bin", b"damaged")
    with pytest.raises(RepositoryError, match="damaged, or another release brought version 1 of encode_text"):
        repository.add(second)


def test_another_release_of_the_same_number_is_refused(tmp_path: Path, repository: Repository) -> None:
    repository.install(make(tmp_path / "here"))
    with pytest.raises(RepositoryError, match=r"got release 1 \(.*\); .* serves another release 1"):
        repository.add(make(tmp_path / "elsewhere", fuse="other"))


def test_an_unreadable_configuration_says_how_to_go_on(store: Path, repository: Repository) -> None:
    repository.install(make(store))
    (repository.pipelines / "emotion" / "config.pbtxt").write_text("name: {")
    with pytest.raises(RepositoryError, match=r"config\.pbtxt can't be read .*serve a release afresh: --release N"):
        repository.live()


def test_installing_anew_remembers_what_was_served_before(store: Path, repository: Repository) -> None:
    first, second = two(store)
    repository.install(first)
    repository.install(second)
    assert repository.live() == Live(2, 1)
    repository.install(second)
    assert repository.live() == Live(2, None)


def test_of_two_who_change_it_one_is_refused(repository: Repository) -> None:
    repository.root.mkdir()
    with repository.lock(), pytest.raises(RepositoryBusy, match=f"process {os.getpid()} is changing"):
        repository.lock().__enter__()
    with repository.lock():
        pass


PROGRAM = """
import sys
from pathlib import Path
from cmt_release.release import open_release
from cmt_server.repository import Repository
repository = Repository(Path(sys.argv[1]) / "repository")
second = open_release(Path(sys.argv[1]) / "releases", 2)
with repository.lock():
    print("begun", flush=True)
    while True:
        repository.add(second)
        repository.load_only([1, 2])
        repository.write_candidate(2, 0.1)
        repository.flip(2, 1)
        repository.remove_candidate()
        repository.flip(1, 2)
        repository.load_only([1])
        repository.remove(2)
"""


@pytest.mark.long
@pytest.mark.parametrize("seed", range(8))
def test_a_kill_at_any_moment_leaves_a_repository_to_start_from(
    store: Path, repository: Repository, tmp_path: Path, seed: int
) -> None:
    first, second = two(store)
    repository.install(first)
    program = f"import sys; sys.path[:0] = {[path for path in sys.path if path]}\n{PROGRAM}"
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    time.sleep(random.Random(seed).uniform(0.0, 0.4))
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()

    live = repository.live()
    assert live is not None
    manifest = {1: first, 2: second}[live.release].manifest
    assert pins(repository) == {(live.release, manifest.stages["fuse"].version)}  # all pipelines, or none
    assert repository.manifests()[live.release] == manifest
    with repository.lock():  # a dead process holds nothing
        repository.load_only([live.release])  # as a supervisor does before it starts the server again
        for name, stage in manifest.stages.items():
            assert loaded(repository, name) == [stage.version]
            for path in stage.files:
                assert (repository.version_folder(name, stage.version) / path).is_file()
        repository.add(second)  # and the next upgrade goes its way
        repository.flip(2, 1)
    assert pins(repository) == {(2, 2)}


def test_plans_are_served_with_configurations_of_their_own(store: Path, repository: Repository) -> None:
    release = make(store)
    repository.install(release)
    assert repository.variant() is None
    manifest = replace(release.manifest, info=replace(release.manifest.info, engine="tensorrt"))
    rewrite(release.folder / "manifest.json", manifest.to_json().encode())
    tuning = {"encode_audio": StageTuning(instances=3, queue_delay_us=700)}
    repository.install(replace(release, manifest=manifest), InstallOptions(tuning=tuning))
    assert repository.variant() == "tensorrt"
    options = ServerOptions(repository.root, store / "work")
    assert "--model-config-name=tensorrt" in command_line(options, {"HTTP": 1, "gRPC": 2, "metrics": 3}, "me", "-")
    config = from_pbtxt((repository.stages / "encode_audio" / "configs" / "tensorrt.pbtxt").read_text())
    ((group,), batching) = config.instance_group, config.dynamic_batching
    assert (group.count, group.kind, batching.max_queue_delay_microseconds) == (3, ModelInstanceGroup.KIND_GPU, 700)
