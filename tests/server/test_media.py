"""The same answer for a file of every accepted format, over gRPC and HTTP, from its bytes, its path and its array."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmt_client import EmotionClient, InvalidInput, Sound
from cmt_pipeline.audio import decode_audio
from cmt_pipeline.image import decode_image
from cmt_server.server import TritonServer
from media.pictures import PICTURES
from media.sounds import RATE_HZ, SOUNDS

SAME = 1e-4  # of a probability


@pytest.fixture(scope="module")
def clients(server: TritonServer) -> Iterator[dict[str, EmotionClient]]:
    with EmotionClient(server.grpc_url) as grpc, EmotionClient(server.http_url) as http:
        yield {"grpc": grpc, "http": http}


def answers(clients: dict[str, EmotionClient], path: Path, modality: str, data: bytes, decoded: Any) -> np.ndarray:
    """[way, label]: bytes over gRPC and HTTP, a path, an array."""
    path.write_bytes(data)
    ways = [("grpc", data), ("http", data), ("grpc", path), ("grpc", decoded)]
    return np.array([list(clients[via].predict(**{modality: value}).probabilities.values()) for via, value in ways])


@pytest.mark.long
@pytest.mark.parametrize("name", PICTURES)
def test_pictures(clients: dict[str, EmotionClient], tmp_path: Path, name: str) -> None:
    data = PICTURES[name].make()
    came = answers(clients, tmp_path / "picture", "image", data, np.asarray(decode_image(data)))
    assert np.abs(came - came[0]).max() < SAME


@pytest.mark.long
@pytest.mark.parametrize("name", SOUNDS)
def test_sounds(clients: dict[str, EmotionClient], tmp_path: Path, name: str) -> None:
    data = SOUNDS[name].make()
    came = answers(clients, tmp_path / "sound", "audio", data, Sound(decode_audio(data), RATE_HZ))
    assert np.abs(came - came[0]).max() < SAME


@pytest.mark.parametrize("name", ["HEIC", "AVIF", "TIFF, LZW"])
def test_half_a_file_is_refused_and_the_next_one_answered(clients: dict[str, EmotionClient], name: str) -> None:
    data = PICTURES[name].make()
    with pytest.raises(InvalidInput) as raised:
        clients["grpc"].predict(image=data[: len(data) // 2])
    assert raised.value.code == "not_decodable"
    assert clients["grpc"].predict(image=data).label
