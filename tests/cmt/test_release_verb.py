"""`cmt release`: between two machines and a store, each a folder here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cmt_cli.main import app
from cmt_cli.state import State
from cmt_release.release import ReleaseError, release_numbers
from cmt_release.store import StoreError, blob_path, open_store
from cmt_server.repository import Repository
from small_releases import BLOBS, make, rewrite

Cmt = Callable[..., Result]
VERBS = ("push", "pull", "list", "show", "verify", "prune")


@pytest.fixture
def cmt(monkeypatch: pytest.MonkeyPatch) -> Cmt:
    """Runs `cmt release`; what it raises comes out."""
    monkeypatch.delenv("CMT_STORE", raising=False)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(app, ["release", *map(str, arguments)], catch_exceptions=False)

    return run


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/store"


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """The state folder of a machine with two releases."""
    state = tmp_path / "here"
    for content in "ab":
        make(State(state).releases, fuse=content)
    return state


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_helps_with_an_example(verb: str, cmt: Cmt) -> None:
    helped = cmt(verb, "--help")
    assert helped.exit_code == 0
    assert f"cmt release {verb}" in helped.stdout.split("Example:")[1]


def test_releases_go_to_another_machine(cmt: Cmt, url: str, here: Path, tmp_path: Path) -> None:
    first = cmt("push", 1, "--store", url, "--state", here)
    assert f"is in {tmp_path}/store; files sent: {BLOBS} (0.0 MB), there already: 0" in first.stdout
    assert f"files sent: 1 (0.0 MB), there already: {BLOBS - 1}" in cmt("push", "--store", url, "--state", here).stdout
    assert "sound: releases 1, 2" in cmt("verify", "--store", url).stdout
    pulled = cmt("pull", "--store", url, "--state", tmp_path / "there")
    assert f"is in {tmp_path}/there/releases/2" in pulled.stdout
    assert release_numbers(State(tmp_path / "there").releases) == [2]
    assert "sound: release 2" in cmt("verify", "--state", tmp_path / "there").stdout


def test_the_store_may_come_from_the_environment(
    cmt: Cmt, url: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CMT_STORE", url)
    cmt("push", 1, "--state", here)
    assert [row["release"] for row in json.loads(cmt("list", "--json", "--state", here).stdout)] == [1]
    local = cmt("list", "--json", "--store", "", "--state", here)
    assert [row["release"] for row in json.loads(local.stdout)] == [1, 2]


@pytest.mark.long
def test_list_and_show_are_the_same_here_and_there(cmt: Cmt, url: str, here: Path) -> None:
    for number in (1, 2):
        cmt("push", number, "--store", url, "--state", here)
    for verb in (["list"], ["show"], ["show", 1]):
        local, remote = cmt(*verb, "--json", "--state", here), cmt(*verb, "--json", "--store", url)
        assert json.loads(local.stdout) == json.loads(remote.stdout)
    rows, shown = json.loads(cmt("list", "--json", "--state", here).stdout), cmt("show", "--json", "--state", here)
    assert rows[1]["digest"] == json.loads(shown.stdout)["digest"]
    assert (rows[1]["preset"], rows[1]["engine"], rows[1]["trained"]) == ("mini", "openvino", False)
    for came in (cmt("list", "--state", here).stdout, cmt("show", "--state", here).stdout):
        assert rows[1]["digest"][:12] in came
        assert "mini" in came
    assert "1.0e-07" in cmt("show", "--state", here).stdout  # of the parity table


def test_list_names_what_it_cant_read(cmt: Cmt, here: Path) -> None:
    rewrite(State(here).releases / "1" / "manifest.json", b"{}")
    rows = json.loads(cmt("list", "--json", "--state", here).stdout)
    assert "got a manifest of format None" in rows[0]["error"]
    assert rows[1]["release"] == 2
    assert "unreadable" in cmt("list", "--state", here).stdout


def test_an_empty_machine_lists_nothing(cmt: Cmt, tmp_path: Path) -> None:
    assert json.loads(cmt("list", "--json", "--state", tmp_path).stdout) == []
    with pytest.raises(ReleaseError, match=r"holds no release; make one with `cmt export`"):
        cmt("show", "--state", tmp_path)


def test_verify_finds_damage(cmt: Cmt, url: str, here: Path) -> None:
    cmt("push", "--store", url, "--state", here)
    store = open_store(url)
    path = blob_path(store.show().golden_files["text"])
    store.objects.delete(path)
    with pytest.raises(StoreError, match=f"{path} is missing"):
        cmt("verify", "--store", url)
    rewrite(State(here).releases / "1" / "golden" / "text", b"damaged")
    with pytest.raises(ReleaseError, match="1/golden/text has sha256"):
        cmt("verify", "--state", here)
    assert "sound: release 2" in cmt("verify", 2, "--state", here).stdout


def test_prune_says_what_goes(cmt: Cmt, url: str, here: Path) -> None:
    for number in (1, 2):
        cmt("push", number, "--store", url, "--state", here)
    planned = cmt("prune", "--keep", 1, "--grace-s", 0, "--store", url, "--dry-run").stdout
    assert "would remove" in planned
    assert open_store(url).numbers() == [1, 2]
    done = cmt("prune", "--keep", 1, "--grace-s", 0, "--store", url).stdout
    assert done == planned.replace("would remove", "removed")
    assert "release 1; files and drafts that none refers to: 1" in done
    assert open_store(url).numbers() == [2]
    open_store(url).verify()


def test_prune_spares_what_is_served_here(cmt: Cmt, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = State(here)
    make(state.releases, fuse="c")
    monkeypatch.setattr(Repository, "manifests", lambda self: {1: object()} if self.root == state.repository else {})
    assert "removed" in cmt("prune", "--keep", 1, "--state", here).stdout
    assert release_numbers(state.releases) == [1, 3]
    with pytest.raises(ValueError, match="release 1 is served here"):
        cmt("prune", 1, "--state", here)
    assert "no release" in cmt("prune", "--state", here).stdout


def test_without_a_store_push_says_how_to_name_one(cmt: Cmt, here: Path) -> None:
    refused = cmt("push", "--state", here)
    assert refused.exit_code == 2
    assert "--store" in refused.output
