"""Bad input gets a clear error and harms nothing: on the real Triton, over gRPC and HTTP."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import time
import wave
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import tritonclient.grpc as grpc_client
from PIL import Image
from tritonclient.utils import InferenceServerException

from cmt_client import EmotionClient, EmotionError, InvalidInput, ModelControl, UnknownPipeline
from cmt_export.checkpoint import Checkpoint
from cmt_pipeline.limits import Limits
from cmt_pipeline.pipelines import PIPELINES
from cmt_release.release import Release
from cmt_server.repository import InstallOptions
from cmt_server.server import TritonServer
from items import as_request, difference, random_items, ready_of, reference
from serving import server_on

GOOD = random_items(1, seed=21)[0]

#: Nothing on the client's side may spare the server a bad file.
NO_LIMITS = Limits(max_image_bytes=1 << 28, max_audio_bytes=1 << 28, max_text_bytes=1 << 28)


def picture(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (90, 120, 30)).save(buffer, "PNG")
    return buffer.getvalue()


def declared_png(width: int, height: int) -> bytes:
    """A PNG that declares its size and carries next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")


def sound(samples: np.ndarray[Any, Any], rate: int = 16_000, subtype: str = "FLOAT") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV", subtype=subtype)
    return buffer.getvalue()


def long_silence(seconds: int) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 1, 8_000, 0, "NONE", ""))
        file.writeframes(bytes([128]) * 8_000 * seconds)
    return buffer.getvalue()


BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "image of no bytes": ({"image": b""}, "image", "empty"),
    "image that is none": ({"image": b"these are no pixels"}, "image", "not_decodable"),
    "truncated JPEG": ({"image": GOOD["image"][: len(GOOD["image"]) // 2]}, "image", "not_decodable"),
    "1 x 1 image": ({"image": picture(1, 1)}, "image", "too_small"),
    "12,000 x 12,000 image": ({"image": declared_png(12_000, 12_000)}, "image", "too_large"),
    "decompression bomb": ({"image": declared_png(60_000, 60_000)}, "image", "too_large"),
    "audio of no bytes": ({"audio": b""}, "audio", "empty"),
    "audio that is none": ({"audio": b"this is no sound"}, "audio", "not_decodable"),
    "audio of 0.01 s": ({"audio": sound(np.zeros(160, np.float32))}, "audio", "too_short"),
    "audio of 10 minutes": ({"audio": long_silence(600)}, "audio", "too_long"),
    "NaN samples": ({"audio": sound(np.full(16_000, np.nan, np.float32))}, "audio", "not_finite"),
    "empty text": ({"text": ""}, "text", "empty"),
    "blank text": ({"text": " \n\t "}, "text", "empty"),
    "100 kB of text": ({"text": "word " * 20_000}, "text", "too_large"),
    "text of too many tokens": ({"text": "word " * 200}, "text", "too_long"),
    "lone surrogate": ({"text": "well \ud83d then"}, "text", "not_unicode"),
}

FINE: dict[str, dict[str, Any]] = {
    "silence": {"audio": sound(np.zeros(16_000, np.float32))},
    "huge samples": {"audio": sound(np.full(16_000, 3e38, np.float32))},
    "emoji": {"text": "😀🎉 great"},
    "one letter": {"text": "a"},
    "smallest image": {"image": picture(16, 16)},
    "16 s to the sample": {"audio": sound(np.zeros(256_000, np.float32), subtype="PCM_16")},
}


@pytest.fixture(scope="module", params=["grpc", "http"])
def client(request: pytest.FixtureRequest, server: TritonServer) -> Iterator[EmotionClient]:
    url = server.grpc_url if request.param == "grpc" else server.http_url
    with EmotionClient(url, limits=NO_LIMITS) as made:
        yield made


@pytest.mark.long
@pytest.mark.parametrize("case", BAD)
def test_the_caller_is_told_field_and_fault_and_the_next_request_answers(
    client: EmotionClient, checkpoint: Checkpoint, case: str
) -> None:
    given, field, code = BAD[case]
    with pytest.raises(InvalidInput) as refused:
        client.predict(**{**as_request(GOOD), **given})
    assert (refused.value.field, refused.value.code) == (field, code)
    assert "expected" in refused.value.message or "accepted" in refused.value.message or "need" in refused.value.message
    assert difference(client.predict(**as_request(GOOD)), reference(checkpoint, GOOD)) < 1e-4


@pytest.mark.parametrize("case", FINE)
def test_unusual_input_that_is_fine_is_answered(client: EmotionClient, case: str) -> None:
    emotion = client.predict(**FINE[case])
    assert sum(emotion.probabilities.values()) == pytest.approx(1.0, abs=1e-4)


def test_no_modality_at_all(client: EmotionClient) -> None:
    with pytest.raises(InvalidInput, match="image, audio"):
        client.predict()


@pytest.mark.long
def test_bad_requests_dont_spoil_their_neighbours(server: TritonServer, checkpoint: Checkpoint) -> None:
    """Bad and good ones in one burst, so that they share Triton's batches."""
    bad = [{**as_request(GOOD), **given} for given, _, code in BAD.values() if code != "not_unicode"]
    burst = [item for pair in zip(bad, [as_request(GOOD)] * len(bad), strict=True) for item in pair] * 4
    with EmotionClient(server.grpc_url, limits=NO_LIMITS) as client:
        results = client.predict_many(burst, concurrency=16)  # type: ignore[arg-type]
    expected = reference(checkpoint, GOOD)
    for index, result in enumerate(results):
        if index % 2 == 0:
            assert isinstance(result, InvalidInput)
        else:
            assert not isinstance(result, EmotionError), result
            assert difference(result, expected) < 1e-4


def test_one_bad_item_of_a_batched_request_is_named(server: TritonServer) -> None:
    tensor = grpc_client.InferInput("text", [3, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[b"one"], [b""], [b"three"]], dtype=object))
    with _plain(server) as client, pytest.raises(InferenceServerException, match=r"text\.empty.*item 1 of 3"):
        client.infer("emotion_text", [tensor])


TENSOR_FAULTS: dict[str, tuple[str, Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]], str]] = {
    "samples outside the buckets": ("input_values", lambda a: a[:, :12_345], "input_values"),
    "NaN pixels": ("pixel_values", lambda a: np.full_like(a, np.nan), "pixel_values"),
    "infinite samples": ("input_values", lambda a: np.full_like(a, np.inf), "input_values"),
    "no sound samples": ("num_samples", lambda a: a * 0, "num_samples"),
    "more sound samples than samples": ("num_samples", lambda a: a + 10**9, "num_samples"),
    "a mask of zeros": ("attention_mask", lambda a: a * 0, "attention_mask"),
    "a mask of sevens": ("attention_mask", lambda a: a * 7, "attention_mask"),
    "negative ids": ("input_ids", lambda a: a - 10**6, "input_ids"),
    "ids beyond the vocabulary": ("input_ids", lambda a: a + 10**6, "input_ids"),
    "wrong height": ("pixel_values", lambda a: a[:, :, :100], "pixel_values"),
    "wrong dtype": ("pixel_values", lambda a: a.astype(np.int64), "pixel_values"),
}


@pytest.mark.parametrize("case", TENSOR_FAULTS)
def test_unsound_tensors_are_refused_by_the_server(server: TritonServer, checkpoint: Checkpoint, case: str) -> None:
    """Sent with plain tritonclient, since our client would refuse some of them itself."""
    name, spoil, field = TENSOR_FAULTS[case]
    ready = ready_of(checkpoint, GOOD)
    with _plain(server) as client:
        with pytest.raises(InferenceServerException, match=field):
            client.infer("emotion_tensors", _inputs({**ready, name: spoil(ready[name])}))
        answer = client.infer("emotion_tensors", _inputs(ready))
    expected = reference(checkpoint, GOOD)["probabilities"]
    assert np.abs(answer.as_numpy("probabilities")[0] - expected).max() < 1e-4


def test_unknown_pipeline(server: TritonServer) -> None:
    from cmt_client.errors import from_triton

    with _plain(server) as client, pytest.raises(InferenceServerException) as refused:
        client.infer("emotion_smell", [])
    assert isinstance(from_triton(refused.value, "emotion_smell"), UnknownPipeline)


@pytest.mark.long
def test_a_refused_request_is_let_go_of(tiny: Release, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Refused requests must not stay in the server: its pipelines unload at once, and its memory does not grow."""
    with (
        server_on(tiny, tmp_path) as running,
        EmotionClient(running.grpc_url, limits=NO_LIMITS) as client,
    ):
        filler = bytes(4 << 20)
        burst = [{**as_request(GOOD), "image": filler}] * 40  # type: ignore[list-item]
        client.predict_many(burst, concurrency=8)  # type: ignore[arg-type]
        before = _resident_bytes(running.pid)
        for _ in range(4):
            refused = client.predict_many(burst, concurrency=8)  # type: ignore[arg-type]
            assert all(isinstance(result, InvalidInput) for result in refused)
        # Leaked, they would take 640 MiB. Allocators keep some for reuse.
        assert _resident_bytes(running.pid) - before < 250 << 20
        with ModelControl(running.grpc_url, token=running.options.control_token) as control:
            for name in PIPELINES:
                control.unload(name)
            deadline = time.monotonic() + 10.0
            while (held := _held(control)) and time.monotonic() < deadline:
                time.sleep(0.05)
        assert not held


def _held(control: ModelControl) -> list[str]:
    """Triton calls a model UNLOADING for as long as a request holds on to it."""
    return [entry.name for entry in control.index() if entry.name in PIPELINES and entry.state != "UNAVAILABLE"]


@pytest.mark.long
def test_limits_are_settings(tiny: Release, tmp_path: Path) -> None:
    limits = Limits(max_audio_s=0.5, min_image_side_px=300)
    with (
        server_on(tiny, tmp_path, InstallOptions(limits)) as running,
        EmotionClient(running.grpc_url) as client,
    ):
        with pytest.raises(InvalidInput, match=r"got 1\.00 s; at most 0\.5 s"):
            client.predict(audio=sound(np.zeros(16_000, np.float32)))
        with pytest.raises(InvalidInput, match="each side needs at least 300"):
            client.predict(image=picture(299, 400))


def test_model_control_is_closed_to_strangers(server: TritonServer) -> None:
    with _plain(server) as client:
        for attempt in (
            lambda: client.unload_model("emotion"),
            lambda: client.load_model("emotion"),
            lambda: client.get_model_repository_index(),
            lambda: client.register_system_shared_memory("mine", "/cmt-x", 16),
        ):
            with pytest.raises(InferenceServerException, match=r"(?i)restricted|not allowed"):
                attempt()
        assert client.is_model_ready("emotion")


def _resident_bytes(pid: int | None) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def _plain(server: TritonServer) -> Iterator[grpc_client.InferenceServerClient]:
    """Plain tritonclient, as somebody without this package would use it."""
    client = grpc_client.InferenceServerClient(server.grpc_url.removeprefix("grpc://"))
    try:
        yield client
    finally:
        client.close()


def _inputs(arrays: dict[str, Any]) -> list[grpc_client.InferInput]:
    inputs = []
    for name, array in arrays.items():
        kind = {"f": "FP32", "i": "INT64"}[array.dtype.kind]
        tensor = grpc_client.InferInput(name, list(array.shape), kind)
        tensor.set_data_from_numpy(np.ascontiguousarray(array))
        inputs.append(tensor)
    return inputs
