"""The baseline answers under the pipeline's contract what PyTorch does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cmt_cli.export import sample
from cmt_client import EmotionClient, EmotionError
from cmt_export.checkpoint import checkpoint_from_preset, load_checkpoint, save_checkpoint
from cmt_export.model import run_model
from cmt_perf.monolith import monolith_on
from cmt_pipeline.preprocess import collate, make_preprocessors
from cmt_server.server import TritonServer
from tiny_model import TINY

pytestmark = pytest.mark.triton

SAMPLES = {"image": sample("image").read_bytes(), "audio": sample("audio").read_bytes(), "text": "Is that you?"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("monolith")


@pytest.fixture(scope="module")
def monolith(folder: Path) -> Iterator[TritonServer]:
    save_checkpoint(checkpoint_from_preset(TINY.name, "meld", model="conventional"), folder / "checkpoint")
    with monolith_on(folder / "checkpoint", folder, threads=1) as server:
        yield server


@pytest.mark.long
def test_it_answers_as_pytorch_does(monolith: TritonServer, folder: Path) -> None:
    checkpoint = load_checkpoint(folder / "checkpoint")
    preprocessors = make_preprocessors(checkpoint.config.preprocess, checkpoint.tokenizer)
    inputs = {}
    for name, value in SAMPLES.items():
        inputs |= collate(name, [preprocessors[name](value if isinstance(value, bytes) else value.encode())])  # type: ignore[arg-type,index]
    wanted = run_model(checkpoint.model, inputs)["probabilities"][0]
    with EmotionClient(monolith.grpc_url) as client:
        emotion = client.predict(**SAMPLES)  # type: ignore[arg-type]
    assert np.allclose(list(emotion.probabilities.values()), wanted, atol=1e-5)
    assert (emotion.preset, emotion.engine, emotion.trained) == (TINY.name, "pytorch", False)


@pytest.mark.long
def test_it_refuses_what_the_pipeline_refuses(monolith: TritonServer) -> None:
    with EmotionClient(monolith.grpc_url) as client, pytest.raises(EmotionError, match="image"):
        client.predict(**SAMPLES | {"image": b"no image"})  # type: ignore[arg-type]
