"""A release that looks for faces, on the real server: with one, without one, and for clients that don't know of it."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from PIL import Image

from cmt_client import EmotionClient, InvalidInput
from cmt_export.export import ExportOptions
from cmt_server.server import TritonServer
from exports import exported
from gateways import running
from photographs import astronaut, crowd, needs_photographs
from serving import server_on

TEXT = "Well, what a surprise."


@pytest.fixture(scope="module")
def looking(tmp_path_factory: pytest.TempPathFactory, _in_use: contextlib.ExitStack) -> Iterator[TritonServer]:
    """A tiny release to which a picture without a face is none."""
    release, _ = exported(ExportOptions(preset="tiny", face="always"), _in_use)
    with server_on(release, tmp_path_factory.mktemp("looking")) as running:
        yield running


@pytest.fixture(scope="module")
def client(looking: TritonServer) -> Iterator[EmotionClient]:
    with EmotionClient(looking.grpc_url) as made:
        yield made


def encoded(image: Image.Image, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


GRADIENT = encoded(Image.linear_gradient("L").convert("RGB").resize((400, 300)))

pytestmark = [pytest.mark.triton, pytest.mark.long]


@needs_photographs
@pytest.mark.parametrize("form", ["PNG", "GIF"])  # decoded at once, and in a process of its own
def test_an_answer_tells_the_box(client: EmotionClient, form: str) -> None:
    answer = client.predict(image=encoded(astronaut(), form), text=TEXT)
    assert answer.modalities == ("image", "text")
    assert answer.face is not None
    assert answer.face.used == "face"
    assert answer.face.box == pytest.approx((174, 72, 276, 175), abs=12)
    assert answer.attention["image"] > 0


@needs_photographs
def test_every_face_is_read(client: EmotionClient, looking: TritonServer) -> None:
    """Each as if it had come alone, from the client and through the gateway."""
    scene, boxes = crowd(160, 280)
    first, second = client.predict_faces(encoded(scene))
    assert first.face is not None
    assert second.face is not None
    assert (first.face.box, second.face.box) == (pytest.approx(boxes[1], abs=12), pytest.approx(boxes[0], abs=12))
    assert first.face.others == second.face.others == ()
    assert first.probabilities == pytest.approx(client.predict(image=encoded(scene)).probabilities, abs=1e-5)
    alone = client.predict(image=encoded(scene.crop((0, 0, 220, scene.height))))
    assert second.probabilities == pytest.approx(alone.probabilities, abs=0.05)
    assert len(client.predict_faces(astronaut())) == 1
    with running("--triton", looking.grpc_url) as (url, _):
        answer = httpx.post(f"{url}/v1/faces", files={"image": encoded(scene)}, timeout=30).json()
        assert [face["face"]["box"] for face in answer["faces"]] == [list(first.face.box), list(second.face.box)]
        refused = httpx.post(f"{url}/v1/faces", files={"image": GRADIENT}, timeout=30)
        assert (refused.status_code, refused.json()["code"]) == (422, "no_face")


def test_without_a_face_the_picture_counts_as_absent(client: EmotionClient) -> None:
    """The answer is that of the other modalities alone, and says so."""
    answer, alone = client.predict(image=GRADIENT, text=TEXT), client.predict(text=TEXT)
    assert answer.face is not None
    assert (answer.face.used, answer.modalities) == ("absent", ("text",))
    assert answer.probabilities == pytest.approx(alone.probabilities, abs=1e-5)
    assert answer.attention == pytest.approx({"text": 1.0}, abs=1e-6)
    assert alone.face is None


def test_a_picture_alone_without_a_face_is_refused(client: EmotionClient) -> None:
    with pytest.raises(InvalidInput, match="without a face, and nothing beside it") as raised:
        client.predict(image=GRADIENT)
    assert (raised.value.field, raised.value.code) == ("image", "no_face")


def test_clients_that_dont_know_of_faces_are_answered(looking: TritonServer) -> None:
    with grpcclient.InferenceServerClient(looking.grpc_url.removeprefix("grpc://")) as raw:
        inputs = [grpcclient.InferInput(name, [1, 1], "BYTES") for name in ("image", "text")]
        for tensor, data in zip(inputs, (GRADIENT, TEXT.encode()), strict=True):
            tensor.set_data_from_numpy(np.array([[data]], np.object_))
        wanted = [grpcclient.InferRequestedOutput(name) for name in ("probabilities", "release")]
        answer = raw.infer("emotion_image_text", inputs, outputs=wanted)
        assert answer.as_numpy("probabilities").sum() == pytest.approx(1, abs=1e-5)
        assert answer.as_numpy("face") is None
