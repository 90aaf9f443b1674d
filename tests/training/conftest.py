"""A small prepared corpus."""

from __future__ import annotations

import pytest

from cmt_export.checkpoint import Checkpoint, checkpoint_from_preset
from cmt_pipeline.progress import no_progress
from cmt_training.examples import DataSet
from cmt_training.prepare import Prepared, prepare
from small_corpus import small_corpus
from tiny_model import TINY


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
