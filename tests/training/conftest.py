"""A small prepared corpus."""

from __future__ import annotations

from pathlib import Path

import pytest

from cmt_export.checkpoint import Checkpoint, checkpoint_from_preset
from cmt_pipeline.progress import no_progress
from cmt_training.examples import DataSet
from cmt_training.prepare import Prepared, prepare
from published import published
from small_corpus import small_corpus
from tiny_model import TEXT_ENCODER, TINY


@pytest.fixture(scope="session")
def published_preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A preset file of three published encoders, small ones."""
    folder = tmp_path_factory.mktemp("published")
    sources = {"image": published("vit", folder / "vit"), "audio": published("wav2vec2", folder / "wav2vec2")}
    lines = [f'[encoders.{m}]\npretrained = "{path}"' for m, path in {**sources, "text": TEXT_ENCODER}.items()]
    fusion = "[fusion]\nlayers = 1\nheads = 2\nfeed_forward_width = 16\ndropout = 0.0"
    (folder / "own.toml").write_text("\n".join([*lines, fusion, ""]))
    return folder / "own.toml"


@pytest.fixture(scope="session")
def untrained() -> Checkpoint:
    return checkpoint_from_preset(TINY.name, "meld")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return small_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def prepared(untrained: Checkpoint, corpus: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    config = untrained.config.preprocess
    return prepare(corpus, config, untrained.tokenizer, tmp_path_factory.mktemp("prepared"), no_progress)
