"""Following a canary: the share that the server names goes to the release on trial, and never hurts a caller."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from cmt_client import AsyncEmotionClient, AsyncFakeTransport, EmotionClient, FakeTransport, UnknownPipeline
from cmt_client.canary import CanaryMode, Routing
from cmt_client.errors import DeadlineExceeded, InferenceFailed, InvalidInput, ServerUnavailable
from cmt_client.fake import FAKE_RELEASE
from cmt_client.operations import GetModelConfig, Infer, InferAnswer

REQUEST = Infer("emotion_text", {}, ())
TRIAL = replace(FAKE_RELEASE, release=2)


@pytest.fixture
def fake() -> FakeTransport:
    """Release 1 is live, release 2 on trial."""
    fake = FakeTransport()
    fake.candidate = TRIAL
    return fake


def releases(fake: FakeTransport, canary: CanaryMode, count: int = 40) -> list[int]:
    with EmotionClient("fake:1", transport=fake, canary=canary) as client:
        return [client.predict(text="hello").release for _ in range(count)]


@pytest.mark.parametrize(("share", "at_least", "at_most"), [(0.0, 0, 0), (0.25, 1, 25), (1.0, 40, 40)])
def test_the_share_that_the_server_names_is_followed(
    fake: FakeTransport, share: float, at_least: int, at_most: int
) -> None:
    fake.canary_share = share
    assert at_least <= releases(fake, "follow").count(2) <= at_most


def test_a_client_that_doesnt_follow_never_meets_a_candidate(fake: FakeTransport) -> None:
    fake.canary_share = 1.0
    assert set(releases(fake, "off")) == {1}
    assert not [call for call in fake.calls if getattr(call, "model", "").startswith("candidate_")]


def test_only_the_candidate(fake: FakeTransport) -> None:
    assert set(releases(fake, "only")) == {2}
    fake.candidate = None
    with pytest.raises(UnknownPipeline):
        releases(fake, "only")


def test_without_a_candidate_following_costs_one_question(fake: FakeTransport) -> None:
    fake.candidate = None
    assert set(releases(fake, "follow")) == {1}
    assert sum(call == GetModelConfig("candidate_emotion_text") for call in fake.calls) == 1


@pytest.mark.parametrize(
    "error",
    [
        InferenceFailed("boom"),
        UnknownPipeline("gone"),
        ServerUnavailable("dead"),
        DeadlineExceeded("slow"),
        InvalidInput("text", "too_long", "got what the live release takes"),
    ],
)
def test_the_live_release_makes_a_candidates_failure_good(fake: FakeTransport, error: Exception) -> None:
    fake.canary_share = 1.0

    def infer(request: Infer) -> InferAnswer:
        if request.model.startswith("candidate_"):
            raise error
        return FakeTransport().call(request, 1.0)

    fake.answer(Infer, infer)
    assert set(releases(fake, "follow")) == {1}


def test_a_candidates_nan_never_reaches_a_caller(fake: FakeTransport) -> None:
    fake.canary_share = 1.0

    def infer(request: Infer) -> InferAnswer:
        answer = fake._infer(request)
        if request.model.startswith("candidate_"):
            return replace(answer, outputs={**answer.outputs, "attention": np.full((1, 3), np.nan)})
        return answer

    fake.answer(Infer, infer)
    assert set(releases(fake, "follow")) == {1}


def test_what_the_live_release_refuses_is_refused(fake: FakeTransport) -> None:
    fake.canary_share = 1.0
    fake.fail(*[InvalidInput("text", "too_long", "got a lot")] * 3)
    with pytest.raises(InvalidInput):
        releases(fake, "follow", 1)


def test_a_question_that_fails_costs_no_retry(fake: FakeTransport) -> None:
    """Nor more than a quarter of the caller's time."""
    gone = ServerUnavailable("gone")
    fake.fail(gone, gone, gone)  # the question, then two of the three tries
    with EmotionClient("fake:1", transport=fake, canary="follow", retries=2, timeout_s=2.0) as client:
        assert client.predict(text="hello").release == 1
    assert fake.timeouts_s[0] <= 0.5
    assert [type(call) for call in fake.calls] == [GetModelConfig, Infer, Infer, Infer]


def test_half_of_the_deadline_is_left_for_the_live_release(fake: FakeTransport) -> None:
    fake.canary_share = 1.0
    with EmotionClient("fake:1", transport=fake, canary="follow", timeout_s=10.0) as client:
        client.predict(text="hello")
    asked = dict(zip([type(call) for call in fake.calls], fake.timeouts_s, strict=True))
    assert 4.0 < asked[Infer] <= 5.0


def test_the_asyncio_client_follows_too(fake: FakeTransport) -> None:
    fake.canary_share = 1.0

    async def ask() -> list[int]:
        async with AsyncEmotionClient("fake:1", transport=AsyncFakeTransport(fake), canary="follow") as client:
            first = (await client.predict(text="hello")).release
            fake.unloaded.add("candidate_emotion_text")  # turned down while the client still sends it requests
            return [first, (await client.predict(text="hello")).release]

    assert asyncio.run(ask()) == [2, 1]


def test_the_share_is_asked_for_again_after_a_while() -> None:
    now = [0.0]
    routing = Routing("follow", draw=lambda: 0.5, clock=lambda: now[0])
    assert routing.question(REQUEST) == GetModelConfig("candidate_emotion_text")
    assert routing.question(REQUEST) is None  # somebody asks already
    routing.learn(REQUEST, {"canary_share": "0.6"})
    assert routing.question(REQUEST) is None
    assert next(routing.plan(REQUEST, 1.0))[0].model == "candidate_emotion_text"
    now[0] = 2.5
    assert routing.question(REQUEST) is not None
    routing.learn(REQUEST, {"canary_share": "0.4"})
    assert next(routing.plan(REQUEST, 1.0))[0] is REQUEST


@pytest.mark.parametrize("said", ["", "much", "nan", "-1"])
def test_a_share_that_is_none_counts_as_nothing(said: str) -> None:
    routing = Routing("follow", draw=lambda: 0.0)
    routing.learn(REQUEST, {"canary_share": said})
    assert next(routing.plan(REQUEST, 1.0))[0] is REQUEST


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="canary: got 'some'; expected one of off, follow, only"):
        EmotionClient("fake:1", canary="some")  # type: ignore[arg-type]
