"""Weights from a hub, by its own client from a server of our own: pinned, checked, and every refusal told."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cmt_export.sources import weights_digest
from hub import Hub, Repository
from published import published

FETCH = """
import sys
from cmt_export.sources import folder_of, pinned
folder = folder_of(sys.argv[1])
print(folder, pinned(sys.argv[1], folder))
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("hub")
    old = published("distilbert", folder / "old")
    torch.save(load_file(old / "model.safetensors"), old / "pytorch_model.bin")
    (old / "model.safetensors").unlink()
    whole = published("roberta", folder / "whole")
    (whole / "README.md").write_text("---\nlicense: mit\n---\n")
    (whole / "example.png").write_bytes(b"not fetched")
    (whole / "training_args.bin").write_bytes(b"pickled")
    repositories = {
        "org/whole": Repository(whole),
        "org/shards": Repository(published("bert", folder / "shards", max_shard_size="60KB")),
        "org/old": Repository(old),
        "org/private": Repository(folder, refused=(401, "RepoNotFound")),
        "org/gated": Repository(folder, refused=(403, "GatedRepo")),
        "org/cut": Repository(published("electra", folder / "cut"), cut={"model.safetensors"}),
    }
    with Hub(repositories) as served:
        yield served


def fetch(hub_url: str, source: str, home: Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the client reads where its hub is once."""
    settings = {
        "HF_ENDPOINT": hub_url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
    }
    return subprocess.run(
        [sys.executable, "-c", FETCH, source],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.long
@pytest.mark.parametrize("name", ["org/whole", "org/shards", "org/old"])
def test_what_is_fetched_is_what_lies_there(hub: Hub, tmp_path: Path, name: str) -> None:
    repository = hub.repositories[name]
    came = fetch(hub.url, name, tmp_path)
    folder, pin = came.stdout.split()
    assert pin == f"{name}@{repository.commit}", came.stderr
    assert weights_digest(Path(folder)) == weights_digest(repository.folder)
    assert not {"example.png", "training_args.bin"} & {path.name for path in Path(folder).iterdir()}
    assert fetch(hub.url, pin, tmp_path).stdout.split() == [folder, pin]


@pytest.mark.long
def test_what_was_fetched_once_needs_no_hub(hub: Hub, tmp_path: Path) -> None:
    folder = fetch(hub.url, "org/whole", tmp_path).stdout.split()[0]
    assert fetch("http://127.0.0.1:9", "org/whole", tmp_path).stdout.split()[0] == folder
    assert "neither cached nor to be fetched" in fetch("http://127.0.0.1:9", "org/shards", tmp_path).stderr


@pytest.mark.long
@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("org/nowhere", "neither cached nor to be fetched"),
        ("org/private", "401"),
        ("org/gated", "403"),
        ("org/whole@v2", "v2"),
        ("org/cut", "neither cached nor to be fetched"),
    ],
)
def test_why_it_cant_be_fetched_is_told(hub: Hub, tmp_path: Path, source: str, told: str) -> None:
    came = fetch(hub.url, source, tmp_path)
    assert came.returncode == 1
    last = came.stderr.strip().splitlines()[-1]
    assert "CheckpointError" in last
    assert told in last


@pytest.mark.long
def test_a_download_that_was_cut_goes_on(hub: Hub, tmp_path: Path) -> None:
    repository = hub.repositories["org/cut"]
    assert fetch(hub.url, "org/cut", tmp_path).returncode == 1
    cut, repository.cut = repository.cut, set()
    folder = fetch(hub.url, "org/cut", tmp_path).stdout.split()[0]
    repository.cut = cut
    assert weights_digest(Path(folder)) == weights_digest(repository.folder)


@pytest.mark.long
def test_a_moved_branch_moves_the_pin(hub: Hub, tmp_path: Path) -> None:
    repository = hub.repositories["org/whole"]
    before = fetch(hub.url, "org/whole", tmp_path).stdout.split()[1]
    (repository.folder / "README.md").write_text("Changed.")
    after = fetch(hub.url, "org/whole", tmp_path).stdout.split()[1]
    assert after != before
    assert fetch(hub.url, before, tmp_path).stdout.split()[1] == before  # as it lies in the cache
