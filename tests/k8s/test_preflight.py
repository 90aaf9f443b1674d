"""Preflight: each reason against a release that paper can tell."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cmt_client.operations import ModelDescription, TensorInfo
from cmt_engine.gpu import find_gpus
from cmt_engine.tensorrt_library import library_version
from cmt_pipeline.labels import labels_of
from cmt_pipeline.release_info import ReleaseStamp
from cmt_release.manifest import Manifest, Tensor
from cmt_release.release import Release
from cmt_rollout import preflight as module
from cmt_rollout.preflight import fits, preflight
from cmt_server.repository import Repository
from small_releases import make, rewrite

WIDTHS = {"logits": 2, "probabilities": 2, "valence_arousal": 2, "attention": 3}
OUTPUTS = (
    *(TensorInfo(name, "FP32", (width,)) for name, width in WIDTHS.items()),
    TensorInfo("release", "BYTES", (1,)),
)


@pytest.fixture
def running(tmp_path: Path) -> Release:
    return make(tmp_path / "releases")


@pytest.fixture
def release(running: Release, tmp_path: Path) -> Release:
    return make(tmp_path / "releases", fuse="new")


@pytest.fixture
def repository(running: Release, tmp_path: Path) -> Repository:
    repository = Repository(tmp_path / "repository")
    repository.install(running)
    return repository


def served(running: Release, **changes: Any) -> ModelDescription:
    info = replace(running.manifest.info, **changes)
    return ModelDescription("emotion", 8, (), OUTPUTS, {"release": ReleaseStamp.of(info, "ab").to_json()})


def changed(release: Release, **changes: Any) -> Release:
    """The release with another manifest, which is also what lies on the disk."""
    manifest: Manifest = replace(release.manifest, **changes)
    rewrite(release.folder / "manifest.json", manifest.to_json().encode())
    return replace(release, manifest=manifest)


def test_a_sound_release_fits(running: Release, release: Release, repository: Repository) -> None:
    assert preflight(release, repository, served(running)) == []


def test_damage(running: Release, release: Release, repository: Repository) -> None:
    rewrite(release.stage_folder("fuse") / "model.bin", b"damaged")
    (reason,) = preflight(release, repository, served(running))
    assert "fuse/model.bin has sha256" in reason


def test_other_labels(running: Release, release: Release, repository: Repository) -> None:
    reasons = preflight(release, repository, served(running, label_set="iemocap4", labels=labels_of("iemocap4")))
    assert reasons[0].startswith("its label set is meld (joy, anger); iemocap4 is served.")
    same_size = preflight(release, repository, served(running, labels=("anger", "joy")))
    assert "label set" in same_size[0]  # the same names in another order are other labels


def test_other_outputs_are_served(running: Release, release: Release, repository: Repository) -> None:
    description = replace(served(running), outputs=(TensorInfo("logits", "FP32", (4,)), *OUTPUTS[1:]))
    assert preflight(release, repository, description) == [
        "output logits is served as FP32 [4]; it would become FP32 [2]"
    ]


def test_other_tensors_than_the_contracts(running: Release, release: Release, repository: Repository) -> None:
    fuse = release.manifest.tensors["fuse"]
    narrow = replace(fuse, inputs={**fuse.inputs, "text_features": Tensor("FP32", (-1, 128))})
    other = changed(release, tensors={**release.manifest.tensors, "fuse": narrow})
    assert preflight(other, repository, served(running)) == [
        "the tensors of fuse aren't those of this version's contract; export it with this version"
    ]


def test_another_kind_of_engine(running: Release, release: Release, repository: Repository) -> None:
    (reason,) = preflight(release, repository, served(running, engine="tensorrt"))
    assert reason == "its engine is openvino; a server started for tensorrt is running"


def test_another_runtime(running: Release, release: Release, repository: Repository) -> None:
    (reason,) = preflight(changed(release, versions={"openvino": "1.0"}), repository, served(running))
    assert reason.startswith("it was compiled with openvino 1.0; 20")


def as_plans(release: Release, **versions: str) -> Release:
    return changed(release, info=replace(release.manifest.info, engine="tensorrt"), versions=versions)


def test_plans_of_rtx_go_to_no_triton(running: Release, release: Release, repository: Repository) -> None:
    plans = as_plans(release, tensorrt_rtx="1.7.1.116")
    (reason,) = preflight(plans, repository, served(running, engine="tensorrt"))
    assert reason.startswith("its plans are TensorRT for RTX 1.7.1.116's, which no backend of Triton runs")
    assert fits(plans.manifest, served(running, engine="tensorrt")) == [reason]  # of pods elsewhere as well


@pytest.mark.skipif(library_version() is not None or bool(find_gpus()), reason="a TensorRT or a GPU is here")
def test_plans_need_their_tensorrt(running: Release, release: Release, repository: Repository) -> None:
    reasons = preflight(as_plans(release, tensorrt="10.13.3.9"), repository, served(running, engine="tensorrt"))
    assert [reason.split(";")[0] for reason in reasons] == [
        "its plans are TensorRT 10.13.3.9's",
        "its plans need a GPU",
        "it needs Triton's tensorrt backend, which the tritonserver here lacks: serve it in the official Triton image "
        "(docs/gpu.md)",
    ]


def test_no_golden_requests(running: Release, release: Release, repository: Repository) -> None:
    (reason,) = preflight(changed(release, golden=[]), repository, served(running))
    assert "no golden requests" in reason


def test_a_full_disk(
    running: Release, release: Release, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage(1 << 30, (1 << 30) - 1, 1))
    (reason,) = preflight(release, repository, served(running))
    assert "64 MB to spare; 0 are free" in reason


def test_too_little_memory(
    running: Release, release: Release, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "available_memory", lambda: 100 << 20)
    (reason,) = preflight(release, repository, served(running))
    assert reason == "it needs about 600 MB of memory beside the live release; 100 are available"
    monkeypatch.setattr(module, "available_memory", lambda: None)  # nothing says so: nothing is claimed
    assert preflight(release, repository, served(running)) == []


def test_the_containers_limit_counts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CGROUP", tmp_path)
    machine = module.available_memory()
    assert machine is not None
    assert machine > 100 << 20
    (tmp_path / "memory.max").write_text(f"{300 << 20}\n")
    (tmp_path / "memory.current").write_text(f"{200 << 20}\n")
    assert module.available_memory() == 100 << 20
