"""Sessions of a client: asked and taken in, blocking and asyncio, here and gone on elsewhere."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from cmt_client import AsyncEmotionClient, AsyncFakeTransport, EmotionClient, FakeTransport, InvalidInput
from cmt_client.fake import FAKE_RELEASE
from cmt_client.session import Moment
from cmt_session import InvalidPolicy, InvalidState, Observation, Session, shipped_policy

TURNS = [("I waited for an hour", 4.0 * n + 4) for n in range(8)]


def angry() -> FakeTransport:
    return FakeTransport(replace(FAKE_RELEASE, trained=True), label="anger")


def client() -> EmotionClient:
    return EmotionClient("fake:1", transport=angry())


def test_answers_are_taken_in_as_the_session_alone_takes_them() -> None:
    alone = Session(shipped_policy("customer_service"))
    with client() as asking:
        session = asking.session("customer_service")
        for text, end_s in TURNS:
            moment = session.observe(text=text, start_s=end_s - 2, end_s=end_s)
            step = alone.observe(Observation.of(asking.predict(text=text), end_s, end_s - 2))
            assert (moment.reading, moment.decision) == (step.reading, step.decision)
            assert moment.emotion.label == "anger"
        assert session.state == alone.state.to_text()
    assert moment.reading.label == "anger"


def test_it_goes_on_elsewhere_and_asyncio_says_the_same() -> None:
    def moments() -> list[Moment]:
        found, state = [], None
        for text, end_s in TURNS:
            with client() as asking:  # another each time
                session = asking.session("customer_service", state=state)
                found.append(session.observe(text=text, end_s=end_s))
                state = session.state
        return found

    async def asynchronous() -> list[Moment]:
        async with AsyncEmotionClient("fake:1", transport=AsyncFakeTransport(angry())) as asking:
            session = asking.session(shipped_policy("customer_service"))
            return [await session.observe(text=text, end_s=end_s) for text, end_s in TURNS]

    both = zip(moments(), asyncio.run(asynchronous()), strict=True)
    assert all((a.reading, a.decision) == (b.reading, b.decision) for a, b in both)


def test_without_a_policy_it_tracks_alone() -> None:
    with client() as asking:
        assert asking.session().observe(text="a", end_s=1.0).decision is None


def test_what_cant_be_used_is_said() -> None:
    with client() as asking:
        with pytest.raises(InvalidPolicy, match=r"expected a \.yaml file, or one of"):
            asking.session("none")
        with pytest.raises(InvalidState):
            asking.session(state="{}")
        session = asking.session()
        before = session.state
        with pytest.raises(InvalidInput):
            session.observe(end_s=1.0)
        assert session.state == before, "what isn't answered isn't taken in"
