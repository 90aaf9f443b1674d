"""What is sent to /v1/emotion and its kin, what comes back, and what Triton is asked."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from cmt_client.errors import (
    DeadlineExceeded,
    EmotionError,
    InferenceFailed,
    InvalidInput,
    Overloaded,
    PermissionDenied,
    ServerUnavailable,
    UnknownPipeline,
)
from cmt_client.fake import FakeTransport
from cmt_client.operations import Infer
from cmt_gateway.inputs import MOST_ITEMS
from cmt_session.context import ruling
from gateways import asking
from small_media import write_video

SAMPLES = Path(__file__).parents[2] / "cmt/cmt_cli/samples"
FACE, VOICE = (SAMPLES / "face.jpg").read_bytes(), (SAMPLES / "speech.wav").read_bytes()
TEXT = "Oh, you are here?"


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def asked(fake: FakeTransport) -> dict[str, bytes]:
    (call,) = [call for call in fake.calls if isinstance(call, Infer)]
    return {name: tensor[0, 0] for name, tensor in call.inputs.items()}


def test_a_form_and_json_ask_the_same() -> None:
    client, fake = asking()
    form = client.post("/v1/emotion", files={"image": ("f.jpg", FACE), "audio": ("v.wav", VOICE)}, data={"text": TEXT})
    first = asked(fake)
    fake.calls.clear()
    sent = {"image": "data:image/jpeg;base64," + base64_of(FACE), "audio": base64_of(VOICE), "text": TEXT}
    as_json = client.post("/v1/emotion", json=sent)
    assert first == asked(fake) == {"image": FACE, "audio": VOICE, "text": TEXT.encode()}
    assert form.status_code == as_json.status_code == 200
    answer = form.json()
    assert answer["request_id"] == form.headers["x-request-id"]
    assert (answer["label"], answer["modalities"], answer["release"]) == ("joy", ["image", "audio", "text"], 1)
    assert sum(answer["probabilities"].values()) == pytest.approx(1)
    assert answer["trained"] is False
    assert {**answer, "request_id": ""} == {**as_json.json(), "request_id": ""}
    assert form.headers["cache-control"] == "no-store"


def test_a_picture_for_its_faces_comes_alone() -> None:
    client, _ = asking()
    answer = client.post("/v1/faces", json={"image": base64_of(FACE)}).json()
    assert [face["label"] for face in answer["faces"]] == ["joy"], "this release looks for none"
    refused = client.post("/v1/faces", json={"image": base64_of(FACE), "text": TEXT})
    assert (refused.status_code, refused.json()["field"]) == (422, "body")
    assert "expected `image` alone" in refused.json()["detail"]
    forbidden, _ = asking(ruling=ruling("workplace"))
    assert forbidden.post("/v1/faces", json={"image": base64_of(FACE)}).status_code == 403


@pytest.mark.parametrize("fields", [{"text": TEXT}, {"image": base64_of(FACE)}, {"audio": base64_of(VOICE)}])
def test_any_modality_alone(fields: dict[str, str]) -> None:
    client, fake = asking()
    answer = client.post("/v1/emotion", json={**fields, "video": None}).json()
    assert answer["modalities"] == list(fields)
    assert list(asked(fake)) == list(fields)


def test_the_caller_names_and_bounds_a_request() -> None:
    client, fake = asking()
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers = {"X-Request-ID": "call-7", "X-Timeout-Ms": "250", "traceparent": trace}
    answer = client.post("/v1/emotion", json={"text": TEXT}, headers=headers)
    (call,) = fake.calls
    assert (call.request_id, call.headers["traceparent"]) == ("call-7", trace)
    assert 0 < fake.timeouts_s[0] <= 0.25
    assert answer.headers["x-request-id"] == "call-7"
    strange = client.post("/v1/emotion", json={"text": TEXT}, headers={"X-Request-ID": 'a b"c'})
    assert strange.headers["x-request-id"] != 'a b"c', "an id that could break a log line is replaced"


@pytest.mark.parametrize(
    ("body", "status", "field", "code"),
    [
        ({}, 422, "body", "missing"),
        ({"text": None}, 422, "body", "missing"),
        ({"smell": "a"}, 422, "smell", "unknown"),
        ({"text": 1}, 422, "text", "type"),
        ({"image": "?"}, 422, "image", "base64"),
        ({"image": base64_of(FACE)[:-1]}, 422, "image", "base64"),
        ({"text": "a" * 9_000}, 413, "text", "too_large"),
        ([], 422, "body", "type"),
        ("a", 422, "body", "type"),
        ({"video": base64_of(b"a"), "image": base64_of(FACE)}, 422, "video", "unexpected"),
        ({"video": base64_of(b"a")}, 422, "video", "not_decodable"),
    ],
)
def test_what_is_wrong_is_said_with_field_and_code(body: Any, status: int, field: str, code: str) -> None:
    client, _ = asking()
    answer = client.post("/v1/emotion", json=body)
    problem = answer.json()
    assert (answer.status_code, problem["status"], problem["field"], problem["code"]) == (status, status, field, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["detail"]
    assert problem["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("application/json", b"{", 400),
        ("application/json", b'{"text": "\xff"}', 400),
        ("application/json", b"[" * 100_000, 400),
        ("text/plain", b"hello", 415),
        ("", b"hello", 415),
        ("multipart/form-data", b"hello", 400),
        ("multipart/form-data; boundary=x", b"hello", 400),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--", 400),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="text"\r\n\r\nfine', 422),
        ("application/x-www-form-urlencoded", b"text=a", 415),
    ],
)
def test_bodies_that_arent_what_they_say(kind: str, body: bytes, status: int) -> None:
    client, fake = asking()
    answer = client.post("/v1/emotion", content=body, headers={"Content-Type": kind})
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert not fake.calls


def test_a_field_comes_once_and_files_are_files() -> None:
    client, _ = asking()
    twice = client.post("/v1/emotion", files=[("image", ("a", FACE)), ("image", ("b", FACE))])
    assert (twice.status_code, twice.json()["code"], twice.json()["field"]) == (422, "repeated", "image")
    value = client.post("/v1/emotion", data={"image": "a"}, files={"audio": ("v.wav", VOICE)})
    assert (value.json()["field"], value.json()["code"]) == ("image", "type")
    not_text = client.post("/v1/emotion", files={"text": ("t.txt", b"\xff")})
    assert (not_text.json()["field"], not_text.json()["code"]) == ("text", "not_decodable")
    as_file = client.post("/v1/emotion", files={"text": ("t.txt", TEXT.encode())})
    assert as_file.status_code == 200


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (InvalidInput("image", "not_decodable", "got no picture"), 422, "not_decodable"),
        (Overloaded("full", "UNAVAILABLE", 0.3, "queue"), 503, "queue"),
        (DeadlineExceeded("late"), 504, "deadline"),
        (UnknownPipeline("no model"), 503, "not_ready"),
        (ServerUnavailable("gone"), 503, "unavailable"),
        (PermissionDenied("no"), 502, "denied"),
        (InferenceFailed("/opt/secret/path broke"), 500, "inference"),
        (KeyError("secret"), 500, "internal"),
    ],
)
def test_what_triton_refuses_keeps_its_meaning(error: Exception, status: int, code: str) -> None:
    client, fake = asking()
    fake.fail(*[error] * 10)
    answer = client.post("/v1/emotion", json={"text": TEXT})
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert "secret" not in answer.text
    assert ("retry-after" in answer.headers) == (status == 503)
    ours = status in (500, 502) or code in ("not_ready", "unavailable")
    counter = "cmt_gateway_faults_total" if ours else "cmt_gateway_refusals_total"
    counted = client.get("/metrics").text
    assert f'{counter}{{code="{code}"}} 1.0' in counted
    assert counted.count(f'{{code="{code}"}} 1.0') == 1, "never counted together"


def test_a_server_that_is_away_for_a_moment_is_asked_again() -> None:
    client, fake = asking()
    fake.fail(ServerUnavailable("gone"))
    assert client.post("/v1/emotion", json={"text": TEXT}).status_code == 200


def test_a_batch_is_settled_item_by_item() -> None:
    client, fake = asking()
    items = [{"text": "a"}, {"image": "?"}, {}, {"text": "b", "audio": base64_of(VOICE)}, 7]
    answer = client.post("/v1/emotion/batch", json={"items": items})
    found = answer.json()["items"]
    assert answer.status_code == 200
    assert [item["problem"] and item["problem"]["code"] for item in found] == [None, "base64", "missing", None, "type"]
    assert [item["answer"] and item["answer"]["modalities"] for item in found] == [
        ["text"],
        None,
        None,
        ["audio", "text"],
        None,
    ]
    assert len(fake.calls) == 2
    assert 'cmt_gateway_refusals_total{code="base64"} 1.0' in client.get("/metrics").text
    for wrong in (
        {},
        {"items": []},
        {"items": [{"text": "a"}] * (MOST_ITEMS + 1)},
        {"items": 1},
        [],
        {"items": [], "x": 1},
    ):
        assert client.post("/v1/emotion/batch", json=wrong).json()["code"] == "batch"


def test_a_film_is_one_answer_or_a_stream_of_windows(tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    write_video(film, seconds=20.0)
    client, fake = asking(timeout_s=30.0)
    files = {"video": ("film.mp4", film.read_bytes())}
    whole = client.post("/v1/emotion", files=files, data={"text": TEXT}).json()
    assert whole["modalities"] == ["image", "audio", "text"]
    assert [window["start_s"] for window in whole["windows"]] == [0.0, pytest.approx(10.0, abs=0.1)]
    fake.calls.clear()
    with client.stream("POST", "/v1/clips", files=files, data={"text": TEXT}) as answer:
        assert answer.headers["content-type"].startswith("application/x-ndjson")
        lines = [json.loads(line) for line in answer.iter_lines()]
    assert [next(iter(line)) for line in lines] == ["window", "window", "whole"]
    assert lines[1]["window"]["end_s"] == pytest.approx(20.0, abs=0.1)
    assert lines[2]["whole"]["label"] == whole["label"]
    fake.fail(*[InferenceFailed("broke")] * 3)
    broken = client.post("/v1/clips", files=files)
    assert (broken.status_code, broken.json()["code"]) == (500, "inference"), "before the first window: a status"


def test_a_stream_that_breaks_says_so(tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    write_video(film, seconds=20.0)
    client, fake = asking(timeout_s=30.0)
    answered = 0

    def fails_later(operation: Infer) -> Any:
        nonlocal answered
        answered += 1
        if answered > 3:
            raise InferenceFailed("broke")
        return FakeTransport().call(operation, 1.0)

    fake.answer(Infer, fails_later)
    with client.stream("POST", "/v1/clips", files={"video": ("f.mp4", film.read_bytes())}) as answer:
        lines = [json.loads(line) for line in answer.iter_lines()]
    assert [next(iter(line)) for line in lines] == ["window", "problem"]
    assert lines[1]["problem"]["code"] == "inference"


def test_a_sound_that_needs_no_cutting_is_answered_whole() -> None:
    client, _ = asking()
    answer = client.post("/v1/clips", files={"audio": ("v.wav", VOICE)}, data={"text": TEXT})
    assert [next(iter(json.loads(line))) for line in answer.iter_lines()] == ["whole"]
    assert client.post("/v1/clips", json={"text": TEXT}).json()["code"] == "missing"


@pytest.mark.parametrize("context", ["education", "workplace"])
@pytest.mark.parametrize("path", ["/v1/emotion", "/v1/clips", "/v1/emotion/batch"])
def test_face_and_voice_are_refused_where_the_law_forbids_them(context: str, path: str) -> None:
    client, fake = asking(ruling=ruling(context))
    for field in ("image", "audio", "video"):
        given: Any = {field: base64_of(VOICE)}
        if path.endswith("clips") and field == "image":
            continue
        answer = client.post(path, json={"items": [given]} if path.endswith("batch") else given)
        problem = answer.json()["items"][0]["problem"] if path.endswith("batch") else answer.json()
        assert (problem["status"], problem["code"]) == (403, "not_allowed")
        assert "AI Act" in problem["detail"]
    assert not fake.calls
    assert client.post("/v1/emotion", json={"text": TEXT}).status_code == 200
    told = client.get("/v1/service").json()
    assert (told["context"], told["modalities"], told["notice"]) == (context, ["text"], "")


def test_errors_are_of_our_own_tree() -> None:
    """Whatever the client may raise has a status."""
    from cmt_gateway.problems import refused

    kinds = EmotionError.__subclasses__()
    assert len(kinds) >= 2
    for kind in kinds:
        error = kind("a", "b", "c") if kind is InvalidInput else kind("a")
        assert 400 <= refused(error).status < 600
