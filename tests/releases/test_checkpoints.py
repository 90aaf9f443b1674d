"""Checkpoints go to a store and come back whole, and nothing that a store says is believed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cmt_pipeline.progress import no_progress
from cmt_release.checkpoints import pull_checkpoint, push_checkpoint, stored_checkpoints
from cmt_release.objects import Objects, StoreError, open_objects
from cmt_release.prune import Selection, prune_store
from cmt_release.store import Store


@pytest.fixture
def objects(url: str) -> Objects:
    return open_objects(url)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    folder = tmp_path / "mini"
    (folder / "more").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights" * 1000)
    (folder / "more" / "empty").touch()
    return folder


def listed(objects: Objects, change: Callable[[dict[str, dict[str, object]]], None]) -> None:
    """Changes what the store says of the checkpoint `mini`."""
    path = "checkpoints/mini.json"
    told = json.loads(b"".join(objects.read(path, objects.size(path) or 0)))
    change(told["files"])
    objects.delete(path)
    objects.create(path, json.dumps(told).encode())


@pytest.mark.long
def test_a_checkpoint_goes_and_comes_back(objects: Objects, made: Path, tmp_path: Path) -> None:
    assert push_checkpoint(objects, made, "mini", no_progress)
    assert not push_checkpoint(objects, made, "mini", no_progress)
    assert stored_checkpoints(objects) == ["mini"]
    pull_checkpoint(objects, "mini", tmp_path / "back", no_progress)
    files = {path.relative_to(made): path.read_bytes() for path in made.rglob("*") if path.is_file()}
    back = tmp_path / "back"
    assert {path.relative_to(back): path.read_bytes() for path in back.rglob("*") if path.is_file()} == files


def test_a_name_is_given_once(objects: Objects, made: Path) -> None:
    push_checkpoint(objects, made, "mini", no_progress)
    (made / "config.json").write_text('{"other": 1}')
    with pytest.raises(StoreError, match=r"checkpoint mini of .* is another one"):
        push_checkpoint(objects, made, "mini", no_progress)


@pytest.mark.long
def test_a_push_that_was_cut_short_is_no_checkpoint_and_is_gone_on_with(
    objects: Objects, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Objects, "create", lambda *_: pytest.exit("killed"))
        with pytest.raises(BaseException, match="killed"):
            push_checkpoint(objects, made, "mini", no_progress)
    assert stored_checkpoints(objects) == []
    assert push_checkpoint(objects, made, "mini", no_progress)
    pull_checkpoint(objects, "mini", tmp_path / "back", no_progress)


def test_pruning_releases_leaves_checkpoints(objects: Objects, made: Path, tmp_path: Path) -> None:
    push_checkpoint(objects, made, "mini", no_progress)
    prune_store(Store(objects), Selection(), grace_s=0)
    pull_checkpoint(objects, "mini", tmp_path / "back", no_progress)


def test_what_is_not_there_is_told_with_what_is(objects: Objects, made: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"got checkpoint other; .* holds none"):
        pull_checkpoint(objects, "other", tmp_path / "back", no_progress)
    push_checkpoint(objects, made, "mini", no_progress)
    with pytest.raises(StoreError, match=r"got checkpoint other; .* holds mini"):
        pull_checkpoint(objects, "other", tmp_path / "back", no_progress)


@pytest.mark.long
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda files: files.update({"../out": files.pop("config.json")}), "leaves its folder"),
        (lambda files: files.update({"/out": files.pop("config.json")}), "is absolute"),
        (lambda files: files["config.json"].update(sha256="ab"), "has no digest or size"),
        (lambda files: files["config.json"].update(size=1), "isn't what its name says"),
        (lambda files: files["config.json"].update(size="2"), "config.json"),
        (lambda files: files["config.json"].update(sha256="0" * 64), "is missing"),
    ],
)
def test_a_list_that_cannot_be_right_is_refused_and_leaves_nothing(
    objects: Objects, made: Path, tmp_path: Path, change: Callable[[dict[str, dict[str, object]]], None], message: str
) -> None:
    push_checkpoint(objects, made, "mini", no_progress)
    listed(objects, change)
    place = tmp_path / "place"
    place.mkdir()
    with pytest.raises(StoreError, match=message):
        pull_checkpoint(objects, "mini", place / "back", no_progress)
    assert not list(place.iterdir())


@pytest.mark.long
@pytest.mark.parametrize("name", ["", ".", "..", "../up", "a/b", "a b", "-x", "x" * 101])
def test_names_that_are_no_names_are_refused(objects: Objects, made: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="expected letters, digits"):
        push_checkpoint(objects, made, name, no_progress)
    with pytest.raises(ValueError, match="expected letters, digits"):
        pull_checkpoint(objects, name, tmp_path / "back", no_progress)
