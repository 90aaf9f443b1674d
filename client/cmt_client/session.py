"""A person over time: each moment is asked for and taken in, and what is known and to be done comes back with it.

    session = client.session(policy="customer_service")
    moment = session.observe(image=frame, audio=turn, text=words, start_s=3.2, end_s=5.9)
    print(moment.reading.label, moment.decision.action)
    kept = session.state                                  # goes on elsewhere: client.session(…, state=kept)

What becomes of an answer is `cmt_session`'s; no server keeps anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cmt_client.encode import AudioInput, ImageInput, TextInput
from cmt_client.result import Emotion
from cmt_pipeline.modality import Modality
from cmt_session.decide import Decision
from cmt_session.observation import Observation
from cmt_session.options import TrackerOptions
from cmt_session.policy import Policy
from cmt_session.session import Session, SessionState
from cmt_session.tracker import Reading


class Client(Protocol):
    """What a session needs of an EmotionClient."""

    def predict(
        self, *, image: ImageInput | None, audio: AudioInput | None, text: TextInput | None, timeout_s: float | None
    ) -> Emotion: ...


class AsyncClient(Protocol):
    """What a session needs of an AsyncEmotionClient."""

    async def predict(
        self, *, image: ImageInput | None, audio: AudioInput | None, text: TextInput | None, timeout_s: float | None
    ) -> Emotion: ...


@dataclass(frozen=True)
class Moment:
    """emotion: what the server answered; reading: what is known after it; decision: None without a policy."""

    emotion: Emotion
    reading: Reading
    decision: Decision | None


class SessionBase:
    """What both know. policy: itself, the name of one that ships, or the path of a YAML file."""

    def __init__(
        self, policy: Policy | str | Path | None, options: TrackerOptions | None, state: str | SessionState | None
    ) -> None:
        from cmt_session.policy_file import open_policy

        of = policy if policy is None or isinstance(policy, Policy) else open_policy(policy)
        began = SessionState.from_json(state) if isinstance(state, str) else state
        self._session = Session(of, options, began)

    @property
    def state(self) -> str:
        """All that the session is, as JSON, to go on from."""
        return self._session.state.to_text()

    def _taken(
        self, emotion: Emotion, end_s: float, start_s: float | None, quality: Mapping[Modality, float] | None
    ) -> Moment:
        step = self._session.observe(Observation.of(emotion, end_s, start_s, quality))
        return Moment(emotion, step.reading, step.decision)


class EmotionSession(SessionBase):
    """Made by `EmotionClient.session`."""

    def __init__(self, client: Client, *more: Any) -> None:
        super().__init__(*more)
        self._client = client

    def observe(
        self,
        *,
        end_s: float,
        start_s: float | None = None,
        image: ImageInput | None = None,
        audio: AudioInput | None = None,
        text: TextInput | None = None,
        quality: Mapping[Modality, float] | None = None,
        timeout_s: float | None = None,
    ) -> Moment:
        """start_s, end_s: of the media, in seconds since the session began; quality: of each input, where somebody
        measured it. Else, and in what it raises, as EmotionClient.predict."""
        emotion = self._client.predict(image=image, audio=audio, text=text, timeout_s=timeout_s)
        return self._taken(emotion, end_s, start_s, quality)


class AsyncEmotionSession(SessionBase):
    """Made by `AsyncEmotionClient.session`. Answers are taken in as they come: one that is later than the options allow
    changes nothing."""

    def __init__(self, client: AsyncClient, *more: Any) -> None:
        super().__init__(*more)
        self._client = client

    async def observe(
        self,
        *,
        end_s: float,
        start_s: float | None = None,
        image: ImageInput | None = None,
        audio: AudioInput | None = None,
        text: TextInput | None = None,
        quality: Mapping[Modality, float] | None = None,
        timeout_s: float | None = None,
    ) -> Moment:
        """As EmotionSession.observe."""
        emotion = await self._client.predict(image=image, audio=audio, text=text, timeout_s=timeout_s)
        return self._taken(emotion, end_s, start_s, quality)
