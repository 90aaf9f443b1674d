"""What Triton's own port makes of the bodies that web clients send first; docs/other-clients.md has the remedies."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request

import pytest

from cmt_cli.export import sample
from cmt_server.server import TritonServer

FACE = sample("image").read_bytes()
WHOLE_BODY = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": "0"}
ENCODED = base64.b64encode(FACE).decode()
TENSOR = {"name": "image", "datatype": "BYTES", "shape": [1, 1], "data": [ENCODED]}
FORM = b"\r\n".join(
    [b"--x", b'Content-Disposition: form-data; name="image"; filename="face.jpg"', b"", FACE, b"--x--", b""]
)


def post(server: TritonServer, verb: str, body: bytes, headers: dict[str, str]) -> tuple[int, str]:
    """Status, and what can be read of the answer."""
    request = urllib.request.Request(f"{server.http_url}/v2/models/emotion_image/{verb}", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (FORM, "multipart/form-data; boundary=x"),
        (FACE, "application/octet-stream"),
        (FACE, "image/jpeg"),
        (FACE, "application/x-www-form-urlencoded"),
    ],
)
def test_a_body_without_the_length_header_is_taken_for_json(server: TritonServer, body: bytes, kind: str) -> None:
    status, told = post(server, "infer", body, {"Content-Type": kind})
    assert status == 500
    assert "failed to parse the request JSON buffer" in told


@pytest.mark.parametrize(("verb", "body"), [("infer", {"inputs": [TENSOR]}), ("generate", {"image": ENCODED})])
def test_base64_is_taken_as_it_stands(server: TritonServer, verb: str, body: object) -> None:
    status, told = post(server, verb, json.dumps(body).encode(), {"Content-Type": "application/json"})
    assert status == 400
    assert "invalid_input(image.not_decodable)" in told


@pytest.mark.parametrize("kind", ["application/octet-stream", "image/jpeg"])
def test_a_whole_body_is_the_file(server: TritonServer, kind: str) -> None:
    status, told = post(server, "infer", base64.b64decode(ENCODED), WHOLE_BODY | {"Content-Type": kind})
    assert status == 200
    assert '"name":"probabilities"' in told
