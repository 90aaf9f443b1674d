"""From an empty cache to an answer: `cmt compose` of a hub's classifiers, exported, served, asked at every subset."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cmt_cli.export import sample
from cmt_client import EmotionClient, InvalidInput
from cmt_export.checkpoint import Checkpoint, load_checkpoint
from cmt_export.compose import meanings
from cmt_pipeline.modality import SUBSETS, Modality
from cmt_pipeline.preprocess import collate, make_preprocessors
from cmt_release.release import Release, open_release
from cmt_server.server import TritonServer
from hub import Hub, Repository
from published_classifiers import ROWS, logits_of, made
from serving import server_on

pytestmark = [pytest.mark.triton, pytest.mark.long]

NAMES: dict[Modality, str] = {
    "image": "Celal11/swin-tiny-patch4-window7-224-finetuned-eurosat",
    "audio": "superb/wav2vec2-base-superb-er",
    "text": "SamLowe/roberta-base-go_emotions",
}
FILES: dict[Modality, bytes] = {m: sample(m).read_bytes() for m in NAMES}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    root = tmp_path_factory.mktemp("hub")
    folders = {name: made(ROWS[name], root / name.replace("/", "--")) for name in NAMES.values()}
    (folders[NAMES["text"]] / "README.md").write_text("---\nlicense: mit\n---\n# Emotions\n")
    with Hub({name: Repository(folder) for name, folder in folders.items()}) as served:
        yield served


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of the hub's client; empty."""
    return tmp_path_factory.mktemp("home")


def run(hub: Hub, home: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", "cmt_cli.main", *map(str, arguments)],
        env={**os.environ, **settings, "HF_HUB_DISABLE_XET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def composed(hub: Hub, home: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The checkpoint of all three, and what the command said."""
    out = tmp_path_factory.mktemp("composed") / "all"
    sources = [part for m, name in NAMES.items() for part in (f"--{m}", name)]
    done = run(hub, home, "compose", *sources, "--synonyms", "annoyance=anger", "--out", out)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


@pytest.fixture(scope="module")
def release(hub: Hub, home: Path, composed: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Release:
    state = tmp_path_factory.mktemp("state")
    done = run(hub, home, "export", "--checkpoint", composed[0], "--state", state)
    assert done.returncode == 0, done.stderr
    return open_release(state / "releases")


@pytest.fixture(scope="module")
def served(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    with server_on(release, tmp_path_factory.mktemp("served")) as server:
        yield server


@pytest.fixture(scope="module")
def checkpoint(
    hub: Hub, home: Path, composed: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory
) -> Checkpoint:
    """What was composed, in this process: its sources are the folders that the hub serves."""
    config = (composed[0] / "config.json").read_text()
    copy = tmp_path_factory.mktemp("local") / "copy"
    copy.mkdir()
    for path in composed[0].iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    for name in NAMES.values():
        repository = hub.repositories[name]
        config = config.replace(f"{name}@{repository.commit}", str(repository.folder))
    (copy / "config.json").write_text(config)
    return load_checkpoint(copy)


def test_what_each_name_means_is_told(composed: tuple[Path, str], hub: Hub) -> None:
    told = composed[1]
    assert f"text: {NAMES['text']}@{hub.repositories[NAMES['text']].commit} (mit)" in told
    assert f"image: {NAMES['image']}@" in told
    for line in ("hap │ joy", "annoyance │ anger", "admiration │ no place", "happy │ joy"):
        assert line in " ".join(told.split()), told
    assert "it says nothing of surprise, fear, disgust" in told


@pytest.mark.parametrize("subset", SUBSETS, ids="+".join)
def test_an_answer_is_what_transformers_says_pooled(
    subset: tuple[Modality, ...], served: TritonServer, checkpoint: Checkpoint, hub: Hub
) -> None:
    labels = checkpoint.config.labels
    prepare = make_preprocessors(checkpoint.config.preprocess, checkpoint.tokenizer)
    total = np.zeros(len(labels))
    for m in subset:
        logits = logits_of(hub.repositories[NAMES[m]].folder, m, collate(m, [prepare[m](FILES[m])])).numpy()
        total += np.log(shares(logits.astype(np.float64), meanings(checkpoint)[m], labels, multiple=m == "text"))
    expected = np.exp(total) / np.exp(total).sum()
    with EmotionClient(served.grpc_url) as client:
        item = {m: FILES[m].decode() if m == "text" else FILES[m] for m in subset}
        answer = client.predict(**item)  # type: ignore[arg-type]
    np.testing.assert_allclose(list(answer.probabilities.values()), expected, atol=1e-3)
    assert (answer.preset, answer.trained, answer.modalities) == ("composed", True, subset)
    assert (answer.valence, answer.arousal) == (None, None)


def shares(logits: np.ndarray, meant: dict[str, str | None], labels: tuple[str, ...], *, multiple: bool) -> np.ndarray:
    """What one classifier says of each label, over what it would say of any; 1 for those that it doesn't know."""
    said = 1 / (1 + np.exp(-logits)) if multiple else np.exp(logits - logits.max())
    parts = {label: [p for p, name in zip(said, meant, strict=True) if meant[name] == label] for label in labels}
    whole = {label: max(own) if multiple else sum(own) for label, own in parts.items() if own}
    return np.array([whole[label] / sum(whole.values()) * len(whole) if label in whole else 1.0 for label in labels])


def test_a_release_names_its_sources(release: Release, hub: Hub) -> None:
    found = {weights.modality: weights for weights in release.manifest.published}
    assert {m: weights.source for m, weights in found.items()} == {
        m: f"{name}@{hub.repositories[name].commit}" for m, name in NAMES.items()
    }
    assert [found[m].licence for m in NAMES] == ["", "", "mit"]
    assert all(len(weights.sha256) == 64 for weights in found.values())


def test_two_classifiers_are_enough(hub: Hub, home: Path, tmp_path: Path) -> None:
    """What has no encoder is refused as such, and the rest is served."""
    sources = ("--image", NAMES["image"], "--text", NAMES["text"])
    for command in (
        ("compose", *sources, "--out", tmp_path / "two"),
        ("export", "--checkpoint", tmp_path / "two", "--precision", "bf16", "--state", tmp_path / "state"),
    ):
        done = run(hub, home, *command)
        assert done.returncode == 0, done.stderr
    release = open_release(tmp_path / "state" / "releases")
    assert {answer.modalities for answer in release.manifest.golden} == {("image", "text"), ("image",), ("text",)}
    with server_on(release, tmp_path) as server, EmotionClient(server.grpc_url) as client:
        text = FILES["text"].decode()
        assert client.predict(image=FILES["image"], text=text).modalities == ("image", "text")
        with pytest.raises(
            InvalidInput, match="got audio; expected image and text: the release reads no other"
        ) as caught:
            client.predict(audio=FILES["audio"], text=text)
        assert (caught.value.field, caught.value.code) == ("audio", "not_offered")
        assert client.predict(text=text).label


def test_what_cant_be_had_is_told_in_a_line(hub: Hub, home: Path, tmp_path: Path) -> None:
    hub.repositories["org/private"] = replace(hub.repositories[NAMES["text"]], refused=(401, "RepoNotFound"))
    hub.repositories["org/gated"] = replace(hub.repositories[NAMES["text"]], refused=(403, "GatedRepo"))
    for name, told in (("org/private", "neither cached nor to be fetched"), ("org/gated", "gated")):
        done = run(hub, home, "compose", "--text", name, "--out", tmp_path / "none")
        assert done.returncode != 0
        assert told in done.stderr.lower()
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "none").exists()
