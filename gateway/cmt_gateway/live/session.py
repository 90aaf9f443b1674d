"""One live session: media and words in, answers with state and decision out. What is kept is what a turn may need."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cmt_client.async_client import AsyncEmotionClient
from cmt_client.errors import EmotionError, Overloaded
from cmt_client.result import Emotion
from cmt_client.tracing import new_request_id
from cmt_gateway.answers import Answer
from cmt_gateway.live.messages import Media, Words
from cmt_gateway.live.noted import Noted
from cmt_gateway.live.speech import OpusDecoder, Speech
from cmt_gateway.live.turns import Began, Ended, Event, Paused, Resumed, TurnCutter, TurnOptions
from cmt_gateway.problems import Refused, refused
from cmt_pipeline.modality import Modality
from cmt_session.context import Ruling
from cmt_session.observation import Observation
from cmt_session.options import TrackerOptions
from cmt_session.policy import Policy
from cmt_session.session import Session, SessionState

Tell = Callable[[dict[str, Any]], None]
GAP_S = 0.2  # between pieces of sound: more is silence that nobody sent
MOST_FRAMES = 24
MOST_FRAME_BYTES = 6_000_000
FRAME_BEFORE_S = 2.0  # a picture this old still goes with a turn


@dataclass(frozen=True)
class LiveOptions:
    """frame_every_s: of media time, between pictures that are read by themselves; timeout_s: of each answer."""

    turns: TurnOptions = field(default_factory=TurnOptions)
    frame_every_s: float = 1.0
    timeout_s: float = 5.0
    quiet_s: float = 5.0  # of media time without an answer, after which that is told: rules of time go on
    most_waiting: int = 2  # turns that are being answered; the next waits, and so does what the client sends


@dataclass(frozen=True)
class _Early:
    """An answer asked for in a pause, in case the turn is over. said: the words that went with it."""

    would_be: Paused
    said: Words | None
    asked: asyncio.Task[Emotion]


class LiveSession:
    """Calls come one after the other; `tell` is given messages in the order in which they are meant."""

    def __init__(
        self,
        client: AsyncEmotionClient,
        ruling: Ruling,
        tell: Tell,
        noted: Noted,
        policy: Policy | None = None,
        state: SessionState | None = None,
        options: LiveOptions | None = None,
    ) -> None:
        self._client, self._ruling, self._tell, self._noted = client, ruling, tell, noted
        self.options = options or LiveOptions()
        tracking = policy.options(ruling) if policy else TrackerOptions(modalities=ruling.modalities)
        self._session = Session(policy, tracking, state)
        self._cutter = TurnCutter(self.options.turns)
        self._speech: Speech | None = None
        self._opus: OpusDecoder | None = None
        self._frames: deque[tuple[float, bytes]] = deque(maxlen=MOST_FRAMES)
        self._words: Words | None = None
        self._early: _Early | None = None
        self._turns = 0
        self._answering: set[asyncio.Task[None]] = set()
        self._before: asyncio.Task[None] | None = None
        self._frame_task: asyncio.Task[None] | None = None
        self._frame_read_s = -1e9
        self._known_s = 0.0 if state is None else state.tracker.clock_s
        self.dropped = 0

    async def media(self, piece: Media) -> None:
        """Raises Refused for what can't be used; the session goes on."""
        modality: Modality = "image" if piece.kind == "image" else "audio"
        self._ruling.check([modality])
        if modality == "image":
            self._frame(piece.time_s, piece.data)
        else:
            await self._sound(piece)

    async def words(self, said: Words) -> None:
        if self._cutter.since_s is not None:
            self._words = said
        elif said.final and said.text.strip():
            at_s = said.time_ms / 1000
            await self._answer(Ended(at_s, at_s, "asked"), said, sound=None)

    async def end_turn(self) -> None:
        if self._speech is not None:
            await self._follow(self._cutter.end(self._speech.end_s, "asked"))

    async def finish(self) -> None:
        """Answers what was begun."""
        await self.end_turn()
        while self._answering:
            await asyncio.wait(self._answering)
        if self._frame_task is not None:
            await asyncio.wait([self._frame_task])

    def stop(self) -> None:
        """Gives up what was begun: nobody is there any more."""
        for task in (*self._answering, self._frame_task, self._early and self._early.asked):
            if task:
                task.cancel()

    async def _sound(self, piece: Media) -> None:
        if piece.kind == "opus":
            self._opus = self._opus or OpusDecoder()
            try:
                pcm = self._opus.decode(piece.data)
            except ValueError as error:
                raise Refused(422, "not_decodable", str(error), field="opus") from None
        else:
            pcm = piece.data
        if self._speech is None:
            self._speech = Speech(piece.time_s, self.options.turns.most_s + 2.0)
            self._cutter.skip(piece.time_s)
        elif piece.time_s - self._speech.end_s > GAP_S:
            await self._follow(self._cutter.end(self._speech.end_s, "gap"))
            self._speech.restart(piece.time_s)
            self._cutter.skip(piece.time_s)
        elif self._speech.end_s - piece.time_s > GAP_S:
            told = f"got sound of {piece.time_s:.2f} s; expected {self._speech.end_s:.2f} s or later"
            raise Refused(422, "out_of_order", told, field=piece.kind)
        for chunk in await asyncio.to_thread(self._speech.hear, pcm):
            await self._follow(self._cutter.feed(*chunk))
        self._quiet(self._speech.end_s)

    async def _follow(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Began):
                self._tell({"type": "turn.start", "turn": self._turns, "start_s": event.start_s})
            elif isinstance(event, Paused):
                # The turn may be over: what it would be is asked for now, so that the answer is there when it is.
                assert self._speech is not None
                sound = self._speech.wav(event.start_s, event.end_s)
                self._early = _Early(event, self._words, self._asked(self._item(event, self._words, sound)))
            elif isinstance(event, Resumed):
                self._forget_early()
            else:
                said, self._words = self._words, None
                assert self._speech is not None
                await self._answer(event, said, self._speech.wav(event.start_s, event.end_s))

    def _forget_early(self) -> None:
        if self._early is not None:
            self._early.asked.cancel()
            self._early = None

    async def _answer(self, turn: Ended, said: Words | None, sound: bytes | None) -> None:
        """In the background, told in the order of the turns; waits where too many are being answered."""
        came, number = time.monotonic(), self._turns
        self._turns += 1
        early = self._early
        if early and (early.would_be.start_s, early.would_be.end_s, early.said) == (turn.start_s, turn.end_s, said):
            asked, self._early = early.asked, None
        else:
            self._forget_early()
            asked = self._asked(self._item(turn, said, sound))
        while len(self._answering) >= self.options.most_waiting:
            await asyncio.wait(self._answering, return_when=asyncio.FIRST_COMPLETED)
        task = asyncio.create_task(self._told(number, turn, asked, came, self._before))
        self._before = task
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _told(
        self, number: int, turn: Ended, asked: asyncio.Task[Emotion], came: float, before: asyncio.Task[None] | None
    ) -> None:
        head: dict[str, Any] = {"turn": number, "start_s": turn.start_s, "end_s": turn.end_s, "ended": turn.why}
        try:
            found = await asked
        except Exception as error:
            if before is not None and not before.done():
                await asyncio.wait([before])
            self._tell({"type": "turn.error", **head, "problem": self._problem(error)})
            return
        finally:
            asked.cancel()
        latency_s = time.monotonic() - came
        self._noted.turn(latency_s)
        if before is not None and not before.done():
            await asyncio.wait([before])
        self._observed(
            {"type": "turn.result", **head, "latency_ms": round(1000 * latency_s, 1)}, found, turn.start_s, turn.end_s
        )

    def _quiet(self, now_s: float) -> None:
        """Nothing was there to be read for a while: that is known too."""
        busy = self._cutter.since_s is not None or self._answering
        if busy or now_s - self._known_s < self.options.quiet_s:
            return
        self._known_s = now_s
        step = self._session.observe(Observation(now_s, now_s))
        self._noted.step(step, None)
        self._tell({"type": "quiet", "time_s": now_s, **step.to_json(), "state": self._session.state.to_text()})

    def _observed(self, head: Mapping[str, Any], found: Emotion, start_s: float, end_s: float) -> None:
        """Tells an answer with what is known and decided after it, and the state to go on from."""
        step = self._session.observe(Observation.of(found, end_s, start_s))
        self._noted.step(step, found)
        self._known_s = max(self._known_s, end_s)
        answer = Answer.of(found, found.request_id).model_dump(exclude_none=True)
        self._tell({**head, "answer": answer, **step.to_json(), "state": self._session.state.to_text()})

    def _item(self, turn: Ended | Paused, said: Words | None, sound: bytes | None) -> dict[str, Any]:
        item: dict[str, Any] = {}
        if (picture := self._picture(turn.start_s, turn.end_s)) is not None:
            item["image"] = picture
        if sound is not None:
            item["audio"] = sound
        if said is not None and said.text.strip():
            item["text"] = said.text
        return item

    def _picture(self, start_s: float, end_s: float) -> bytes | None:
        """The frame nearest to the middle of a turn; else the last one shortly before."""
        near = [(time_s, data) for time_s, data in self._frames if start_s - FRAME_BEFORE_S <= time_s <= end_s]
        middle = (start_s + end_s) / 2
        return min(near, key=lambda frame: abs(frame[0] - middle))[1] if near else None

    def _frame(self, time_s: float, data: bytes) -> None:
        """Kept for turns; read by itself now and then, if the one before is done with."""
        if self._frames and time_s <= self._frames[-1][0]:
            raise Refused(422, "out_of_order", f"got a picture of {time_s:.2f} s again or late", field="image")
        self._frames.append((time_s, data))
        while sum(len(kept) for _, kept in self._frames) > MOST_FRAME_BYTES:
            self._frames.popleft()
        if time_s - self._frame_read_s < self.options.frame_every_s:
            return
        if self._frame_task is not None and not self._frame_task.done():
            self._drop(time_s)
            return
        self._frame_read_s = time_s
        self._frame_task = asyncio.create_task(self._read_frame(time_s, data))

    def _drop(self, time_s: float) -> None:
        """A picture that is left out, which is said."""
        self.dropped += 1
        self._noted.dropped()
        self._tell({"type": "dropped", "kind": "image", "time_s": time_s, "count": self.dropped})

    async def _read_frame(self, time_s: float, data: bytes) -> None:
        try:
            found = await self._ask({"image": data})
        except Overloaded:
            self._drop(time_s)
        except EmotionError as error:
            self._tell({"type": "frame.error", "time_s": time_s, "problem": self._problem(error)})
        else:
            self._observed({"type": "frame.result", "time_s": time_s}, found, time_s, time_s)

    def _problem(self, error: Exception) -> dict[str, Any]:
        """What is told of an error, which is counted."""
        found = refused(error)
        self._noted.not_answered(found.code)
        return found.problem(None).model_dump(exclude_none=True)

    def _asked(self, item: Mapping[str, Any]) -> asyncio.Task[Emotion]:
        task = asyncio.create_task(self._ask(item))
        task.add_done_callback(_looked_at)
        return task

    async def _ask(self, item: Mapping[str, Any]) -> Emotion:
        return await self._client.predict(**item, timeout_s=self.options.timeout_s, request_id=new_request_id())


def _looked_at(task: asyncio.Task[Emotion]) -> None:
    """So that nothing is logged of an answer that nobody waited for."""
    if not task.cancelled():
        task.exception()
