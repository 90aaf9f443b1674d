"""Promise 2: the same answer, however it is batched; on the real Triton, against PyTorch fp32 one at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cmt_cli.export import sample
from cmt_client import AsyncEmotionClient, Emotion, EmotionClient, connect
from cmt_client.operations import GetStatistics
from cmt_engine.engine import Precision
from cmt_export.checkpoint import Checkpoint
from cmt_pipeline.modality import SUBSETS
from cmt_pipeline.preprocess import collate
from cmt_release.release import Release
from cmt_server.server import TritonServer
from items import as_request, difference, random_items, ready_of, reference
from serving import server_on

#: Largest difference of a probability, valence or arousal that a release of this precision may show.
BOUNDS: dict[Precision, float] = {"fp32": 1e-4, "bf16": 4e-2, "int8": 1e-1}


def answers(server: TritonServer, items: list[dict[str, bytes]], concurrency: int) -> list[Emotion]:
    with EmotionClient(server.grpc_url) as client:
        return client.predict_many(map(as_request, items), concurrency=concurrency, errors="raise")  # type: ignore[arg-type]


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(7, 21), concurrency=st.integers(2, 16))
def test_random_mixes_sent_together_answer_as_pytorch_does_alone(
    server: TritonServer, checkpoint: Checkpoint, seed: int, count: int, concurrency: int
) -> None:
    items = random_items(count, seed)
    for item, emotion in zip(items, answers(server, items, concurrency), strict=True):
        assert emotion.modalities == tuple(item)
        assert difference(emotion, reference(checkpoint, item)) < BOUNDS["fp32"]


@pytest.mark.long
def test_requests_really_were_batched_together(server: TritonServer, checkpoint: Checkpoint) -> None:
    """Without this, the property above could hold because nothing ever met."""
    item = random_items(1, seed=5)[0]
    transport = connect(server.grpc_url)
    try:
        together = {k: v for k, v in _batches(transport).items() if k > 1}
        got = answers(server, [item] * 48, concurrency=16)  # type: ignore[list-item]
        after = {k: v for k, v in _batches(transport).items() if k > 1}
    finally:
        transport.close()
    assert sum(after.values()) > sum(together.values())
    expected = reference(checkpoint, item)
    assert max(difference(emotion, expected) for emotion in got) < BOUNDS["fp32"]


@pytest.mark.long
def test_different_items_answer_differently(checkpoint: Checkpoint) -> None:
    """The bound means something only if answers differ by far more than it."""
    probabilities = [reference(checkpoint, item)["probabilities"] for item in random_items(28, seed=1)]
    for index in range(7):
        same_subset = np.array(probabilities[index::7])
        assert np.ptp(same_subset, axis=0).max() > 10 * BOUNDS["fp32"]


@pytest.mark.long
@pytest.mark.triton
@pytest.mark.parametrize(
    ("engine", "precision"),
    [
        ("openvino", "bf16"),
        pytest.param("openvino", "int8", marks=pytest.mark.slow),
        pytest.param("onnxruntime", "int8", marks=pytest.mark.slow),
    ],
)
def test_reduced_precision_stays_within_its_bound(
    engine: str,
    precision: Precision,
    release_of: Callable[..., Release],
    checkpoint: Checkpoint,
    tmp_path: Path,
) -> None:
    items = random_items(28, seed=3)
    with server_on(release_of(precision, engine), tmp_path) as running:
        alone = answers(running, items, concurrency=1)  # type: ignore[arg-type]
        together = answers(running, items, concurrency=14)  # type: ignore[arg-type]
    for item, one, many in zip(items, alone, together, strict=True):
        expected = reference(checkpoint, item)
        assert difference(one, expected) < BOUNDS[precision]
        assert difference(many, expected) < BOUNDS[precision]


@pytest.mark.long
def test_a_batch_of_tensors_answers_item_by_item(server: TritonServer, checkpoint: Checkpoint) -> None:
    items = [item for item in random_items(40, seed=9) if len(item) == 3][:5]
    preprocessed = [ready_of(checkpoint, item) for item in items]
    tensors = {}
    for modality, names in {
        "image": ["pixel_values"],
        "audio": ["input_values", "num_samples"],
        "text": ["input_ids", "attention_mask"],
    }.items():
        rows = [{name: ready[name][0] for name in names} for ready in preprocessed]
        tensors |= collate(modality, rows)  # type: ignore[arg-type]
    with EmotionClient(server.grpc_url) as client:
        emotions = client.predict_tensors(**tensors)
    assert len(emotions) == len(items)
    for item, emotion in zip(items, emotions, strict=True):
        assert difference(emotion, reference(checkpoint, item)) < BOUNDS["fp32"]


@pytest.mark.parametrize("subset", SUBSETS, ids="+".join)
def test_every_subset_and_both_entrances_agree(
    server: TritonServer, checkpoint: Checkpoint, subset: tuple[str, ...]
) -> None:
    item = next(item for item in random_items(7, seed=11) if tuple(item) == subset)
    expected = reference(checkpoint, item)
    with EmotionClient(server.grpc_url) as client:
        raw = client.predict(**as_request(item))
        ready = client.predict_tensors(**ready_of(checkpoint, item))[0]
    for emotion in (raw, ready):
        assert emotion.modalities == subset
        assert set(emotion.attention) == set(subset)
        assert sum(emotion.attention.values()) == pytest.approx(1.0, abs=1e-5)
        assert difference(emotion, expected) < BOUNDS["fp32"]


def test_the_release_knows_what_its_samples_mean(
    server: TritonServer, release_of: Callable[[Precision], Release]
) -> None:
    """The manifest's golden answers are PyTorch's, and what the server says."""
    release = release_of("fp32")
    assert {answer.modalities for answer in release.manifest.golden} == set(SUBSETS)
    text = sample("text").read_text().strip()
    given = {"image": sample("image"), "audio": sample("audio"), "text": text}
    with EmotionClient(server.grpc_url) as client:
        for answer in release.manifest.golden:
            emotion = client.predict(**{m: given[m] for m in answer.modalities})  # type: ignore[arg-type]
            assert emotion.release == release.number
            assert emotion.probabilities == pytest.approx(answer.probabilities, abs=BOUNDS["fp32"])
            assert (emotion.valence, emotion.arousal) == pytest.approx((answer.valence, answer.arousal), abs=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_all_clients_say_the_same(server: TritonServer, checkpoint: Checkpoint, scheme: str) -> None:
    url = server.grpc_url if scheme == "grpc" else server.http_url
    items = random_items(7, seed=13)

    async def ask() -> list[Emotion]:
        async with AsyncEmotionClient(url) as client:
            return await client.predict_many(map(as_request, items), errors="raise")

    with EmotionClient(url) as client:
        blocking = [client.predict(**as_request(item)) for item in items]
    for item, one, other in zip(items, blocking, asyncio.run(ask()), strict=True):
        expected = reference(checkpoint, item)
        assert difference(one, expected) < BOUNDS["fp32"]
        assert difference(other, expected) < BOUNDS["fp32"]


def _batches(transport: object) -> dict[int, int]:
    """Batch size -> executions, over all stages."""
    total: dict[int, int] = {}
    for stage in transport.call(GetStatistics(), 10.0):  # type: ignore[attr-defined]
        for size, count in stage.batches.items():
            total[size] = total.get(size, 0) + count
    return total
