"""Files that end in zeros, sent as numpy's own byte strings, which strip them: docs/other-clients.md has this table."""

from __future__ import annotations

import io
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile
import tritonclient.grpc
import tritonclient.http
from PIL import Image
from tritonclient.utils import InferenceServerException

from cmt_server.server import TritonServer


def picture(format_: str) -> bytes:
    """Noise above black; a BMP begins at the bottom, so for it black is above."""
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    pixels[slice(24) if format_ == "BMP" else slice(40, 64)] = 0
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, format_)
    return written.getvalue()


def sound(format_: str, *, streamed: bool = False) -> bytes:
    """Noise before silence. streamed: a WAV with the length that a pipe's has."""
    samples = np.random.default_rng(0).standard_normal(32_000) * 0.1
    samples[24_000:] = 0
    written = io.BytesIO()
    soundfile.write(written, samples, 16_000, "PCM_16", format=format_)
    data = written.getvalue()
    if streamed:
        place = data.index(b"data") + 4
        data = data[:place] + b"\xff" * 4 + data[place + 4 :]
    return data


def flac() -> bytes:
    """One whose checksum ends in zero, as one in 256 does."""
    for seed in range(10_000):
        written = io.BytesIO()
        soundfile.write(written, np.random.default_rng(seed).standard_normal(2_000) * 0.1, 16_000, format="FLAC")
        if written.getvalue().endswith(b"\0"):
            return written.getvalue()
    raise AssertionError("no FLAC file ended in zero")


def ask(triton: ModuleType, server: TritonServer, name: str, array: Any) -> Any:
    """Probabilities, by tritonclient alone."""
    url = server.grpc_url if triton is tritonclient.grpc else server.http_url
    tensor = triton.InferInput(name, [1, 1], "BYTES")
    tensor.set_data_from_numpy(array)
    with triton.InferenceServerClient(url.split("://")[1]) as client:
        return client.infer(f"emotion_{name}", [tensor]).as_numpy("probabilities")


@pytest.mark.parametrize("triton", [tritonclient.grpc, tritonclient.http], ids=["grpc", "http"])
@pytest.mark.parametrize(
    ("name", "data", "code"),
    [
        ("audio", sound("WAV"), "audio.cut"),
        ("audio", sound("RF64"), "audio.cut"),
        ("audio", sound("AIFF"), "audio.cut"),
        ("audio", flac(), "audio.not_decodable"),
        *(("image", picture(format_), "image.not_decodable") for format_ in ("WEBP", "BMP", "TIFF", "PPM")),
    ],
    ids=["WAV", "RF64", "AIFF", "FLAC", "WEBP", "BMP", "TIFF", "PPM"],
)
def test_what_numpy_stripped_is_refused(
    server: TritonServer, triton: ModuleType, name: str, data: bytes, code: str
) -> None:
    assert data.endswith(b"\0")
    ask(triton, server, name, np.array([[data]], dtype=object))
    with pytest.raises(InferenceServerException, match=code.replace(".", r"\.")):
        ask(triton, server, name, np.array([[data]]))


def test_a_stream_without_its_end_is_a_shorter_one(server: TritonServer) -> None:
    data = sound("WAV", streamed=True)
    whole = ask(tritonclient.grpc, server, "audio", np.array([[data]], dtype=object))
    stripped = ask(tritonclient.grpc, server, "audio", np.array([[data]]))
    assert np.abs(whole - stripped).max() > 1e-3


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "GIF"])
def test_zeros_after_a_picture_may_go(server: TritonServer, format_: str) -> None:
    """What these need doesn't end in zeros; cameras and disks put some there."""
    data = picture(format_) + bytes(64)
    whole = ask(tritonclient.grpc, server, "image", np.array([[data]], dtype=object))
    np.testing.assert_array_equal(whole, ask(tritonclient.grpc, server, "image", np.array([[data]])))
