"""Both clients on a server that isn't there: the same questions get the same answers."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cmt_client import (
    AsyncEmotionClient,
    AsyncFakeTransport,
    DeadlineExceeded,
    Emotion,
    EmotionClient,
    EmotionError,
    FakeTransport,
    InferenceFailed,
    InvalidInput,
    Item,
    ServerUnavailable,
    UnknownPipeline,
)
from cmt_client.operations import Infer, InferAnswer
from cmt_pipeline.modality import MODALITIES, SUBSETS
from cmt_pipeline.release_info import ReleaseStamp

ITEM: Item = {"image": b"an image", "audio": b"a sound", "text": "a text"}
GONE = ServerUnavailable("gone")

Ask = Callable[..., Any]


@pytest.fixture
def fake() -> FakeTransport:
    return FakeTransport()


@pytest.fixture(params=["blocking", "asyncio"])
def ask(request: pytest.FixtureRequest, fake: FakeTransport) -> Ask:
    """ask(method, settings of the client, **arguments): one question of a new client of either kind."""

    def blocking(method: str, settings: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        with EmotionClient("fake:1", transport=fake, **settings) as client:
            return getattr(client, method)(*args, **kwargs)

    def waiting(method: str, settings: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        async def main() -> Any:
            async with AsyncEmotionClient("fake:1", transport=AsyncFakeTransport(fake), **settings) as client:
                return await getattr(client, method)(*args, **kwargs)

        return asyncio.run(main())

    return blocking if request.param == "blocking" else waiting


def predict(ask: Ask, item: Item = ITEM, **settings: Any) -> Emotion:
    emotion: Emotion = ask("predict", settings, **item)
    return emotion


@pytest.mark.parametrize("subset", SUBSETS)
def test_an_answer_says_what_it_is_made_of(ask: Ask, fake: FakeTransport, subset: tuple[str, ...]) -> None:
    emotion = predict(ask, {m: ITEM[m] for m in subset})  # type: ignore[literal-required,misc]
    assert emotion.label == "joy"
    assert emotion.probability == emotion.probabilities["joy"] == max(emotion.probabilities.values())
    assert tuple(emotion.probabilities) == tuple(emotion.logits) == fake.release.labels
    assert emotion.modalities == subset
    assert tuple(emotion.attention) == subset
    assert sum(emotion.attention.values()) == pytest.approx(1)
    assert (emotion.valence, emotion.arousal) == (0.5, -0.25)
    assert (emotion.release, emotion.label_set, emotion.preset) == (1, "meld", "mini")
    assert emotion.digest == fake.release.digest
    assert (emotion.engine, emotion.precision, emotion.trained) == ("fake", "fp32", False)
    assert fake.closed


def test_an_answer_becomes_json(ask: Ask) -> None:
    emotion = predict(ask)
    assert json.loads(json.dumps(emotion.to_json())) == emotion.to_json()
    assert emotion.to_json()["modalities"] == list(MODALITIES)


def test_a_batch_of_tensors_is_one_request(ask: Ask, fake: FakeTransport) -> None:
    answers = ask("predict_tensors", {}, pixel_values=np.zeros((3, 3, 224, 224), np.float32))
    assert [emotion.modalities for emotion in answers] == [("image",)] * 3
    assert [type(call) for call in fake.calls] == [Infer]


def test_invalid_input_is_never_sent(ask: Ask, fake: FakeTransport) -> None:
    for item in ({}, {"text": "\ud800"}, {"image": np.zeros(3)}):
        with pytest.raises(InvalidInput):
            predict(ask, item)
    assert fake.calls == []


def test_many_keep_their_order_and_errors_stay_in_place(ask: Ask, fake: FakeTransport) -> None:
    def answer(request: Infer) -> InferAnswer:
        (name,) = request.inputs
        if request.inputs[name][0, 0] == b"broken":
            raise InvalidInput(name, "not_decodable", "got broken")
        return fake._infer(request)

    fake.answer(Infer, answer)
    items: list[Item] = [{"image": b"x"}, {"image": b"broken"}, {"text": "hi"}, {}, {"audio": b"x"}] * 5
    results = ask("predict_many", {}, items, concurrency=4)
    assert len(results) == 25
    for item, result in zip(items, results, strict=True):
        if not item or item.get("image") == b"broken":
            assert isinstance(result, InvalidInput)
        else:
            assert result.modalities == tuple(item)


def test_many_can_raise_the_first_error(ask: Ask) -> None:
    with pytest.raises(InvalidInput, match="no modality"):
        ask("predict_many", {}, [ITEM, {}, {"text": "\ud800"}], errors="raise")
    assert ask("predict_many", {}, [], errors="raise") == []


def test_concurrency_must_be_positive(ask: Ask) -> None:
    with pytest.raises(ValueError, match="concurrency: got 0"):
        ask("predict_many", {}, [ITEM], concurrency=0)


def test_many_are_in_flight_at_once_but_no_more_than_asked(fake: FakeTransport) -> None:
    flying, peak, lock = 0, 0, threading.Lock()

    def answer(request: Infer) -> InferAnswer:
        nonlocal flying, peak
        with lock:
            flying += 1
            peak = max(peak, flying)
        time.sleep(0.05)
        with lock:
            flying -= 1
        return fake._infer(request)

    fake.answer(Infer, answer)
    with EmotionClient("fake:1", transport=fake) as client:
        client.predict_many([ITEM] * 12, concurrency=3)
    assert peak == 3


def test_unavailability_is_tried_again(ask: Ask, fake: FakeTransport) -> None:
    fake.fail(GONE, ConnectionResetError(104, "reset"))
    assert predict(ask, retries=2).label == "joy"
    assert [type(call) for call in fake.calls] == [Infer, Infer, Infer]


def test_retries_end(ask: Ask, fake: FakeTransport) -> None:
    fake.fail(GONE, GONE, GONE)
    with pytest.raises(ServerUnavailable):
        predict(ask, retries=1)
    assert len(fake.calls) == 2


@pytest.mark.parametrize(
    "error",
    [
        InvalidInput("image", "not_decodable", "got no image"),
        DeadlineExceeded("late"),
        UnknownPipeline("who?"),
        InferenceFailed("boom"),
    ],
)
def test_nothing_else_is_tried_again(ask: Ask, fake: FakeTransport, error: EmotionError) -> None:
    fake.fail(error)
    with pytest.raises(type(error)):
        predict(ask, retries=5)
    assert len(fake.calls) == 1


def test_the_deadline_covers_every_try(ask: Ask, fake: FakeTransport) -> None:
    fake.fail(*[GONE] * 100)
    with pytest.raises((ServerUnavailable, DeadlineExceeded)):  # whichever the machine's pace leaves time for
        predict(ask, retries=100, timeout_s=0.5)
    assert fake.timeouts_s == sorted(fake.timeouts_s, reverse=True)
    assert 0 < fake.timeouts_s[-1] < fake.timeouts_s[0] <= 0.5


def test_a_call_may_have_its_own_deadline(ask: Ask, fake: FakeTransport) -> None:
    ask("predict", {"timeout_s": 5}, text="hi", timeout_s=1)
    assert max(fake.timeouts_s) <= 1
    with pytest.raises(DeadlineExceeded, match="within 0 s"):
        ask("predict", {}, text="hi", timeout_s=0)


def test_an_unknown_pipeline_is_said(ask: Ask, fake: FakeTransport) -> None:
    fake.unloaded.add("emotion")
    with pytest.raises(UnknownPipeline, match="'emotion' is not found"):
        predict(ask)


def test_each_answer_says_who_made_it(ask: Ask, fake: FakeTransport) -> None:
    """Whatever came before: behind a balancer every answer may be another server's, with other labels."""
    other = ReleaseStamp(
        1,
        "iemocap4",
        ("anger", "happiness", "neutral", "sadness"),
        "mini",
        "openvino",
        "int8",
        trained=True,
        digest="b",
    )
    releases = itertools.cycle([fake.release, replace(other, labels=other.labels[::-1]), other])

    def answer(request: Infer) -> InferAnswer:
        fake.release = next(releases)
        fake.label = fake.release.labels[0]
        return fake._infer(request)

    fake.answer(Infer, answer)
    results = ask("predict_many", {}, [{"text": "a"}] * 6, concurrency=1)
    assert [(r.digest, r.label, tuple(r.probabilities)) for r in results] == [
        (stamp.digest, stamp.labels[0], stamp.labels) for stamp in [next(releases) for _ in range(6)]
    ]
    assert {type(call) for call in fake.calls} == {Infer}


@pytest.mark.parametrize("said", [b"", b"{}", b"[1]", b'{"release": 7}', b"\xff"])
def test_an_answer_that_doesnt_say_who_made_it_fails(ask: Ask, fake: FakeTransport, said: bytes) -> None:
    fake.answer(Infer, outputs(release=np.array([[said]], np.object_)))
    with pytest.raises(InferenceFailed, match="doesn't say which release answered"):
        predict(ask)


def test_an_answer_of_two_releases_fails(ask: Ask, fake: FakeTransport) -> None:
    one, two = (replace(fake.release, release=number).to_json().encode() for number in (1, 2))
    fake.answer(Infer, outputs(release=np.array([[one], [two]], np.object_)))
    with pytest.raises(InferenceFailed, match="from 2 releases at once"):
        predict(ask)


def outputs(**changes: Any) -> Callable[[Infer], InferAnswer]:
    def answer(request: Infer) -> InferAnswer:
        good = FakeTransport()._infer(request)
        changed = {**good.outputs, **changes}
        return replace(good, outputs={name: array for name, array in changed.items() if array is not None})

    return answer


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"logits": None}, "without logits"),
        ({"release": None}, "without release"),
        ({"probabilities": np.zeros((1, 4))}, "7 labels"),
        ({"attention": np.zeros((2, 3))}, "shapes"),
        ({"probabilities": np.full((1, 7), np.nan)}, "NaN"),
        ({"valence_arousal": np.array([[np.inf, 0]])}, "infinity"),
    ],
)
def test_what_is_no_answer_fails(ask: Ask, fake: FakeTransport, changes: dict[str, Any], said: str) -> None:
    fake.answer(Infer, outputs(**changes))
    with pytest.raises(InferenceFailed, match=said):
        predict(ask)


def test_a_url_is_checked_at_once() -> None:
    for kind in (EmotionClient, AsyncEmotionClient):
        with pytest.raises(ValueError, match="server URL: got 'ftp://x:1'"):
            kind("ftp://x:1")
