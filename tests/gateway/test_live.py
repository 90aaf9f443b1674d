"""Live sessions over a socket: what is sent, what comes back, what is kept by whom."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient, WebSocketDenialResponse, WebSocketTestSession
from starlette.websockets import WebSocketDisconnect

from cmt_client.errors import InferenceFailed, Overloaded
from cmt_client.fake import FAKE_RELEASE, FakeTransport
from cmt_client.operations import Infer
from cmt_gateway.keys import new_key
from cmt_gateway.live.messages import HEAD, KEY_PROTOCOL, PROTOCOL
from cmt_gateway.live.speech import RATE_HZ, Speech
from cmt_session.context import ruling
from gateways import asking

SAMPLES = Path(__file__).parents[2] / "cmt/cmt_cli/samples"
FACE = (SAMPLES / "face.jpg").read_bytes()
VOICE, VOICE_HZ = soundfile.read(SAMPLES / "speech.wav", dtype="int16")
PIECE = 1_600  # samples, 0.1 s
BEGIN = {"type": "session.begin"}


def quiet(seconds: float) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 4, round(seconds * RATE_HZ)).astype(np.int16)


def media(kind: int, time_s: float, data: bytes) -> bytes:
    return HEAD.pack(kind, round(1000 * time_s)) + data


def pieces(sound: np.ndarray, from_s: float = 0.0) -> Iterator[bytes]:
    for start in range(0, len(sound), PIECE):
        yield media(2, from_s + start / RATE_HZ, sound[start : start + PIECE].tobytes())


def two_turns() -> np.ndarray:
    return np.concatenate([quiet(1.0), VOICE, quiet(1.0), VOICE, quiet(1.0)])


def opened(client: TestClient, **more: Any) -> Any:
    return client.websocket_connect("/v1/live", subprotocols=[PROTOCOL], **more)


def heard(socket: WebSocketTestSession, until: str = "session.ended") -> list[dict[str, Any]]:
    """All messages up to and with one of a type."""
    found = []
    while not found or found[-1]["type"] != until:
        found.append(json.loads(socket.receive_text()))
    return found


def conversation(client: TestClient, sent: list[bytes | dict[str, Any]], begin: dict[str, Any] = BEGIN) -> list[Any]:
    with opened(client) as socket:
        for message in [begin, *sent, {"type": "session.end"}]:
            if isinstance(message, bytes):
                socket.send_bytes(message)
            else:
                socket.send_text(json.dumps(message))
        return heard(socket)


def of_type(messages: list[Any], kind: str) -> list[Any]:
    return [message for message in messages if message["type"] == kind]


def asked(fake: FakeTransport) -> list[dict[str, bytes]]:
    return [{n: t[0, 0] for n, t in call.inputs.items()} for call in fake.calls if isinstance(call, Infer)]


def test_the_sample_is_the_rate_of_the_protocol() -> None:
    assert VOICE_HZ == RATE_HZ


def test_speech_is_cut_into_turns_that_are_answered_in_order() -> None:
    client, fake = asking()
    found = conversation(client, list(pieces(two_turns())))
    created, *_ = found
    assert (created["type"], created["modalities"]) == ("session.created", ["image", "audio", "text"])
    assert created["notice"]
    results = of_type(found, "turn.result")
    assert [result["turn"] for result in results] == list(range(len(results)))
    assert [message["turn"] for message in of_type(found, "turn.start")] == list(range(len(results)))
    voice_s = len(VOICE) / RATE_HZ
    assert results[0]["start_s"] == pytest.approx(1.0, abs=0.2)
    assert results[-1]["end_s"] == pytest.approx(2.0 + 2 * voice_s, abs=0.3)
    assert [result["ended"] for result in results] == ["silence"] * len(results)
    for result, item in zip(results, asked(fake), strict=False):
        sound, rate_hz = soundfile.read(io.BytesIO(item["audio"]), dtype="int16")
        assert rate_hz == RATE_HZ
        assert len(sound) / rate_hz == pytest.approx(result["end_s"] - result["start_s"], abs=0.002)
        assert result["answer"]["modalities"] == ["audio"]
        assert result["reading"]["clock_s"] == result["end_s"]


def test_the_answer_is_asked_for_before_the_turn_is_over() -> None:
    """In the pause, when there is still the time to end the turn; and only once where nothing more came."""
    client, fake = asking()
    found = conversation(client, list(pieces(np.concatenate([quiet(0.5), VOICE[-12_000:], quiet(1.0)]))))
    assert len(of_type(found, "turn.result")) == len(asked(fake)) == 1


def test_a_turn_has_its_picture_and_its_words() -> None:
    client, fake = asking()
    sound = list(pieces(two_turns()))
    pictures = [FACE + bytes([number]) for number in range(20)]
    sent: list[bytes | dict[str, Any]] = []
    for number, piece in enumerate(sound):
        if number % 4 == 0:
            sent.append(media(1, number / 10, pictures[number // 4]))
        if number == 13:
            sent.append({"type": "text", "text": "Oh", "time_ms": 1300, "final": False})
            sent.append({"type": "text", "text": "Oh, really?", "time_ms": 1350})
        sent.append(piece)
    found = conversation(client, sent)
    first = of_type(found, "turn.result")[0]
    assert first["answer"]["modalities"] == ["image", "audio", "text"]
    turns = [item for item in asked(fake) if "audio" in item and "text" in item]
    assert turns[-1]["text"] == b"Oh, really?"
    middle = (first["start_s"] + first["end_s"]) / 2
    nearest = min(range(len(pictures)), key=lambda number: abs(number * 0.4 - middle))
    assert turns[-1]["image"] == pictures[nearest]
    frames = of_type(found, "frame.result")
    assert frames
    assert all(b["time_s"] - a["time_s"] >= 1.0 for a, b in pairwise(frames))
    assert len(frames) + len(of_type(found, "dropped")) <= len(sound) / 10 + 1


def test_words_alone_are_turns() -> None:
    client, fake = asking()
    sent = [
        {"type": "text", "text": text, "time_ms": 1000 * n, "final": final}
        for n, (text, final) in enumerate([("typ", False), ("typing done", True), ("  ", True), ("again", True)])
    ]
    found = conversation(client, list(sent))
    assert [result["answer"]["modalities"] for result in of_type(found, "turn.result")] == [["text"]] * 2
    assert [item["text"] for item in asked(fake)] == [b"typing done", b"again"]


@pytest.mark.long
def test_silence_is_known_too() -> None:
    """So that a policy's rules of time go on where nobody says anything."""
    client, fake = asking()
    found = conversation(client, list(pieces(quiet(12.0))), {**BEGIN, "policy": "customer_service"})
    told = of_type(found, "quiet")
    assert [round(message["time_s"]) for message in told] == [5, 10]
    assert {message["reading"]["standing"] for message in told} == {"no_evidence"}
    assert told[-1]["decision"]["kind"] == "abstain"
    assert not asked(fake)


def test_a_button_ends_a_turn_and_a_gap_does() -> None:
    client, _ = asking()
    voice = [*pieces(VOICE[-12_000:])]
    found = conversation(client, [*voice, {"type": "turn.end"}, *pieces(VOICE[-12_000:], from_s=9.0)])
    assert [(r["ended"], r["start_s"] >= 9.0) for r in of_type(found, "turn.result")] == [
        ("asked", False),
        ("asked", True),
    ]
    found = conversation(client, [*voice, *pieces(VOICE[-12_000:], from_s=9.0)])
    assert [r["ended"] for r in of_type(found, "turn.result")] == ["gap", "asked"]


@pytest.mark.long
def test_opus_is_heard_as_pcm_is() -> None:
    encoder = av.CodecContext.create("libopus", "w")
    encoder.sample_rate, encoder.format, encoder.layout = 48_000, "s16", "mono"
    encoder.open()
    resampler = av.AudioResampler("s16", "mono", 48_000, encoder.frame_size)
    frame = av.AudioFrame.from_ndarray(two_turns()[None], format="s16", layout="mono")
    frame.sample_rate = RATE_HZ
    packets = [
        bytes(p) for part in [*resampler.resample(frame), *resampler.resample(None)] for p in encoder.encode(part)
    ]
    step_s = encoder.frame_size / 48_000
    client, _ = asking()
    found = conversation(client, [media(3, number * step_s, packet) for number, packet in enumerate(packets)])
    pcm = conversation(client, list(pieces(two_turns())))
    ends = [[result["end_s"] for result in of_type(each, "turn.result")] for each in (found, pcm)]
    assert ends[0] == pytest.approx(ends[1], abs=0.1)


def test_a_session_goes_on_from_the_state_that_its_client_keeps() -> None:
    """On another replica: what comes out is what would have come out without the break."""
    words = [{"type": "text", "text": f"word {n}", "time_ms": 3000 * n} for n in range(8)]
    begin = {**BEGIN, "policy": "customer_service"}
    whole = of_type(conversation(asking()[0], list(words), begin), "turn.result")
    first = of_type(conversation(asking()[0], list(words[:5]), begin), "turn.result")
    messages = conversation(asking()[0], list(words[5:]), {**begin, "state": first[-1]["state"]})
    assert messages[0]["resumed"] is True
    assert messages[0]["clock_s"] == 12.0
    rest = of_type(messages, "turn.result")
    for before, after in zip(whole, [*first, *rest], strict=True):
        assert before["reading"] == after["reading"]
        assert before["decision"] == after["decision"]
        assert before["state"] == after["state"]


def test_face_and_voice_are_refused_at_work_and_in_education() -> None:
    client, fake = asking(ruling=ruling("workplace"))
    found = conversation(
        client, [media(1, 0, FACE), *pieces(VOICE[:3200]), {"type": "text", "text": "a", "time_ms": 0}]
    )
    assert (found[0]["modalities"], found[0]["notice"]) == (["text"], "")
    problems = [message["problem"] for message in of_type(found, "error")]
    assert {(p["field"], p["code"]) for p in problems} == {("image", "not_allowed"), ("audio", "not_allowed")}
    assert [list(item) for item in asked(fake)] == [["text"]]


def test_decisions_are_counted_and_audited_without_content(tmp_path: Path) -> None:
    audit = tmp_path / "audit.jsonl"
    client, fake = asking(audit=audit)
    fake.release = replace(FAKE_RELEASE, trained=True)
    fake.label = "anger"
    words = [{"type": "text", "text": "nobody-may-read-this", "time_ms": 4000 * n} for n in range(12)]
    found = conversation(client, list(words), {**BEGIN, "policy": "customer_service"})
    acts = [r["decision"] for r in of_type(found, "turn.result") if r["decision"]["action"]]
    assert acts
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    assert [(line["action"], line["rule"], line["policy"]) for line in lines] == [
        (act["action"], act["rule"], "customer_service") for act in acts
    ]
    assert "nobody-may-read-this" not in audit.read_text()
    assert "anger" not in audit.read_text(), "what was inferred of a person is content"
    counted = client.get("/metrics").text
    assert f'cmt_gateway_actions_total{{action="{acts[0]["action"]}",policy="customer_service"}}' in counted
    assert "cmt_gateway_turn_seconds_count 12.0" in counted
    assert 'cmt_gateway_states_total{standing="steady"}' in counted


def test_what_fails_is_told_and_the_session_goes_on() -> None:
    client, fake = asking()
    fake.fail(*[InferenceFailed("broke")] * 3)
    words = [{"type": "text", "text": f"word {n}", "time_ms": 1000 * n} for n in range(5)]
    found = conversation(client, list(words))
    kinds = [message["type"] for message in found if message["type"].startswith("turn.")]
    assert kinds == ["turn.error"] * 3 + ["turn.result"] * 2
    assert of_type(found, "turn.error")[0]["problem"]["code"] == "inference"
    assert 'cmt_gateway_faults_total{code="inference"} 3.0' in client.get("/metrics").text


def test_pictures_are_dropped_when_too_many_come_and_that_is_said() -> None:
    client, fake = asking()
    fake.fail(*[Overloaded("full", None, 0.1, "queue")] * 5)
    with opened(client) as socket:
        socket.send_text(json.dumps(BEGIN))
        socket.send_bytes(media(1, 0.0, FACE))
        socket.send_text(json.dumps({"type": "session.end"}))
        found = heard(socket)
    dropped = of_type(found, "dropped")
    assert [(message["kind"], message["count"]) for message in dropped] == [("image", 1)]


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"type": "session.begin"}, "type"),
        ({"type": "nothing"}, "message"),
        ({"type": "text", "text": "a"}, "text.time_ms"),
        ({"type": "text", "text": "a", "time_ms": -1}, "text.time_ms"),
        ({"type": "text", "text": "a", "time_ms": 0, "more": 1}, "text.more"),
        ([], "message"),
        (b"", "media"),
        (b"\x09\0\0\0\0a", "media"),
        (media(2, 0, b"abc"), "pcm"),
        (media(3, 0, b"\xff" * 100), "opus"),
        (media(2, 0, b"\0" * 70_000), "pcm"),
    ],
)
def test_messages_that_cant_be_used_are_named(message: Any, field: str) -> None:
    client, fake = asking()
    (problem,) = [found["problem"] for found in of_type(conversation(client, [message]), "error")]
    assert problem["field"] == field
    assert not fake.calls


@pytest.mark.parametrize(
    ("begin", "field"),
    [
        ({"type": "text", "text": "a", "time_ms": 0}, "type"),
        ({**BEGIN, "policy": "none"}, "policy"),
        ({**BEGIN, "state": "{}"}, "state"),
        ({**BEGIN, "state": "["}, "state"),
        ({**BEGIN, "extra": 1}, "session.begin.extra"),
    ],
)
def test_a_beginning_that_cant_be_used_ends_it(begin: Any, field: str) -> None:
    client, _ = asking()
    with opened(client) as socket:
        socket.send_text(json.dumps(begin))
        assert json.loads(socket.receive_text())["problem"]["field"] == field
        with pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_text()
    assert closed.value.code == 1008


def test_only_those_with_a_key_and_of_a_known_origin(tmp_path: Path) -> None:
    key = new_key(tmp_path / "keys", "shop")
    client, _ = asking(keys=tmp_path / "keys", origins=("https://shop.example",), most_sessions=1)
    with pytest.raises(WebSocketDenialResponse) as nobody, opened(client):
        pass
    assert (nobody.value.status_code, nobody.value.json()["code"]) == (401, "key")
    with (
        pytest.raises(WebSocketDenialResponse) as stranger,
        opened(client, headers={"Authorization": f"Bearer {key}", "Origin": "https://evil.example"}),
    ):
        pass
    assert (stranger.value.status_code, stranger.value.json()["code"]) == (403, "origin")
    assert 'cmt_gateway_refusals_total{code="origin"} 1.0' in client.get("/metrics").text
    browser = client.websocket_connect(
        "/v1/live", subprotocols=[PROTOCOL, KEY_PROTOCOL + key], headers={"Origin": "https://shop.example"}
    )
    with browser as socket:
        assert socket.accepted_subprotocol == PROTOCOL, "the key isn't said back"
        with pytest.raises(WebSocketDenialResponse) as full, opened(client, headers={"X-API-Key": key}):
            pass
        assert full.value.json()["code"] == "sessions"
        socket.send_text(json.dumps(BEGIN))
        assert json.loads(socket.receive_text())["type"] == "session.created"
    with opened(client, headers={"X-API-Key": key, "Origin": "http://testserver"}) as socket:
        socket.send_text(json.dumps({**BEGIN}))
        assert json.loads(socket.receive_text())["type"] == "session.created", "the place is free again; its own page"


def test_a_client_that_is_only_noise_is_let_go() -> None:
    client, _ = asking()
    with opened(client) as socket:
        socket.send_text(json.dumps(BEGIN))
        for _ in range(30):
            socket.send_text("?")
        with pytest.raises(WebSocketDisconnect) as closed:
            heard(socket)
    assert closed.value.code == 1008


def test_one_who_says_nothing_is_let_go() -> None:
    client, _ = asking(socket_idle_s=0.05)
    with opened(client) as socket:
        socket.send_text(json.dumps(BEGIN))
        with pytest.raises(WebSocketDisconnect) as closed:
            heard(socket)
    assert closed.value.code == 1001


messages = st.one_of(
    st.binary(max_size=64),
    st.builds(media, st.integers(0, 4), st.floats(0, 1e5), st.binary(max_size=64)),
    st.text(max_size=64),
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=8), lambda inner: st.lists(inner, max_size=3)
    ).map(json.dumps),
    st.fixed_dictionaries(
        {"type": st.sampled_from(["session.begin", "text", "turn.end", "x"])},
        optional={
            "text": st.text(max_size=8) | st.none(),
            "time_ms": st.integers() | st.floats(),
            "state": st.text(max_size=9),
        },
    ).map(json.dumps),
)


@pytest.mark.long
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(messages, max_size=12))
def test_whatever_is_sent_the_session_answers_or_closes(sent: list[bytes | str]) -> None:
    with opened(CLIENT) as socket:
        socket.send_text(json.dumps(BEGIN))
        for message in sent:
            if isinstance(message, bytes):
                socket.send_bytes(message)
            else:
                socket.send_text(message)
        socket.send_text(json.dumps({"type": "session.end"}))
        found = heard(socket)
    assert found[0]["type"] == "session.created"
    assert {message["type"] for message in found} <= {
        "quiet",
        "session.created",
        "session.ended",
        "error",
        "turn.start",
        "turn.result",
        "turn.error",
        "frame.result",
        "dropped",
    }


CLIENT = asking(rate="1000000/second")[0]


def test_sound_is_kept_as_long_as_a_turn_may_need_it() -> None:
    speech = Speech(5.0, keep_s=2.0)
    sound = np.arange(4 * RATE_HZ, dtype=np.int32).astype(np.int16)
    for start in range(0, len(sound), 1_000):
        speech.hear(sound[start : start + 1_000].tobytes())
    assert speech.end_s == pytest.approx(9.0)
    kept, _ = soundfile.read(io.BytesIO(speech.wav(8.0, 8.5)), dtype="int16")
    assert np.array_equal(kept, sound[3 * RATE_HZ : 3 * RATE_HZ + RATE_HZ // 2])
    everything, _ = soundfile.read(io.BytesIO(speech.wav(0.0, 99.0)), dtype="int16")
    assert len(everything) == 2 * RATE_HZ
