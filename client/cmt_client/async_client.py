"""AsyncEmotionClient: what `cmt_client.client` does, for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, overload

from cmt_client.canary import AsyncCanaryTransport, CanaryMode, Routing
from cmt_client.client_base import (
    DEFAULT_CONCURRENCY,
    DEFAULT_RETRIES,
    DEFAULT_TIMEOUT_S,
    ClientBase,
    answered_windows,
    at_least_one,
    check_film_alone,
    film_emotion,
    items_of,
    items_of_scene,
    next_windows,
    pause_s,
    settled,
)
from cmt_client.encode import AudioInput, FileInput, ImageInput, TextInput
from cmt_client.errors import EmotionError, ServerUnavailable, identified
from cmt_client.faces import emotions_of_faces, items_of_others
from cmt_client.files import rereadable
from cmt_client.film import scenes
from cmt_client.operations import Infer
from cmt_client.requests import Item, from_item, from_tensors, named
from cmt_client.result import Emotion, emotions_from
from cmt_client.retry import Budget
from cmt_client.session import AsyncEmotionSession
from cmt_client.transport import AsyncTransport, connect_async
from cmt_client.windows import LongEmotion, WindowEmotion, cut, long_emotion, mean_emotion, uncut_explained
from cmt_pipeline.limits import DEFAULT_LIMITS, Limits
from cmt_pipeline.tensors import Array
from cmt_session.options import TrackerOptions
from cmt_session.policy import Policy
from cmt_session.session import SessionState


class AsyncEmotionClient(ClientBase):
    """The same for asyncio, within one event loop. Parameters as EmotionClient's. Close it, or use `async with`."""

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retries: int = DEFAULT_RETRIES,
        retry_refused: bool = True,
        limits: Limits = DEFAULT_LIMITS,
        canary: CanaryMode = "off",
        transport: AsyncTransport | None = None,
        root_certificates: Path | None = None,
    ) -> None:
        routing = Routing(canary)
        self._transport = transport or connect_async(url, limits, root_certificates)
        if canary != "off":
            self._transport = AsyncCanaryTransport(self._transport, routing)
        super().__init__(timeout_s, retries, limits, retry_refused)

    async def predict(
        self,
        *,
        image: ImageInput | None = None,
        audio: AudioInput | None = None,
        text: TextInput | None = None,
        video: FileInput | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Emotion:
        """As EmotionClient.predict."""
        if video is not None:
            check_film_alone(image, audio, request_id, headers)
            return (await self.predict_video(video, text=text, timeout_s=timeout_s)).whole
        return await self._predict({"image": image, "audio": audio, "text": text}, timeout_s, request_id, headers)

    def session(
        self,
        policy: Policy | str | Path | None = None,
        *,
        options: TrackerOptions | None = None,
        state: str | SessionState | None = None,
    ) -> AsyncEmotionSession:
        """As EmotionClient.session."""
        return AsyncEmotionSession(self, policy, options, state)

    @overload
    async def predict_many(
        self, items: Iterable[Item], *, concurrency: int = ..., timeout_s: float | None = ...
    ) -> list[Emotion | EmotionError]: ...

    @overload
    async def predict_many(
        self,
        items: Iterable[Item],
        *,
        concurrency: int = ...,
        timeout_s: float | None = ...,
        errors: Literal["raise"],
    ) -> list[Emotion]: ...

    async def predict_many(
        self,
        items: Iterable[Item],
        *,
        concurrency: int = DEFAULT_CONCURRENCY,
        timeout_s: float | None = None,
        errors: Literal["return", "raise"] = "return",
    ) -> Sequence[Emotion | EmotionError]:
        """As EmotionClient.predict_many."""
        turns = asyncio.Semaphore(at_least_one(concurrency))

        async def one(item: Item) -> Emotion | EmotionError:
            async with turns:
                try:
                    return await self._predict(item, timeout_s)
                except EmotionError as error:
                    return error

        return settled(await asyncio.gather(*map(one, items)), errors)

    async def predict_long(
        self,
        *,
        audio: AudioInput,
        image: ImageInput | None = None,
        text: TextInput | None = None,
        window_s: float | None = None,
        concurrency: int = DEFAULT_CONCURRENCY,
        timeout_s: float | None = None,
    ) -> LongEmotion:
        """As EmotionClient.predict_long."""
        audio, beside = await asyncio.to_thread(lambda: (rereadable(audio), self._beside(image, text)))
        windows = self._windows_of_sound(audio, beside, window_s, concurrency, timeout_s)
        answered = [window async for window in windows]
        if answered:
            return long_emotion(answered)
        with uncut_explained():
            return LongEmotion(await self._predict({**beside, "audio": audio}, timeout_s))

    async def stream_long(
        self,
        *,
        audio: AudioInput,
        image: ImageInput | None = None,
        text: TextInput | None = None,
        window_s: float | None = None,
        concurrency: int = DEFAULT_CONCURRENCY,
        timeout_s: float | None = None,
    ) -> AsyncIterator[WindowEmotion]:
        """The windows of `predict_long` as they are answered, in order; none of a sound that needs no cutting.

        timeout_s: of each window.
        """
        audio, beside = await asyncio.to_thread(lambda: (rereadable(audio), self._beside(image, text)))
        async for window in self._windows_of_sound(audio, beside, window_s, concurrency, timeout_s):
            yield window

    async def _windows_of_sound(
        self, audio: AudioInput, beside: Item, window_s: float | None, concurrency: int, timeout_s: float | None
    ) -> AsyncIterator[WindowEmotion]:
        windows = cut(audio, self.limits, window_s)  # not closed here: a cancelled thread may be at work in it still
        while group := await asyncio.to_thread(next_windows, windows, concurrency):
            items = items_of(group, beside)
            emotions = await self.predict_many(items, concurrency=concurrency, timeout_s=timeout_s, errors="raise")
            for window in answered_windows(group, emotions):
                yield window

    async def predict_video(
        self,
        video: FileInput,
        *,
        text: TextInput | None = None,
        window_s: float | None = None,
        concurrency: int = DEFAULT_CONCURRENCY,
        timeout_s: float | None = None,
    ) -> LongEmotion:
        """As EmotionClient.predict_video."""
        windows = self.stream_video(video, text=text, window_s=window_s, concurrency=concurrency, timeout_s=timeout_s)
        return film_emotion([window async for window in windows])

    async def stream_video(
        self,
        video: FileInput,
        *,
        text: TextInput | None = None,
        window_s: float | None = None,
        concurrency: int = DEFAULT_CONCURRENCY,
        timeout_s: float | None = None,
    ) -> AsyncIterator[WindowEmotion]:
        """The windows of `predict_video` as they are answered, in order. timeout_s: of each picture's request."""
        film, beside = await asyncio.to_thread(lambda: (rereadable(video), self._beside(None, text)))
        shown = scenes(film, self.limits, window_s)  # not closed here: a cancelled thread may be at work in it still
        while (scene := await asyncio.to_thread(next, shown, None)) is not None:
            items = items_of_scene(scene, beside)
            emotions = await self.predict_many(items, concurrency=concurrency, timeout_s=timeout_s, errors="raise")
            yield WindowEmotion(scene.start_s, scene.end_s, mean_emotion(emotions))

    async def predict_faces(
        self, image: ImageInput, *, concurrency: int = DEFAULT_CONCURRENCY, timeout_s: float | None = None
    ) -> list[Emotion]:
        """As EmotionClient.predict_faces."""
        beside = await asyncio.to_thread(self._beside, image, None)
        first = await self._predict(beside, timeout_s)
        items = await asyncio.to_thread(items_of_others, beside, first, self.limits)
        others = await self.predict_many(items, concurrency=concurrency, timeout_s=timeout_s, errors="raise")
        return emotions_of_faces(first, others)

    async def predict_tensors(
        self,
        *,
        timeout_s: float | None = None,
        request_id: str | None = None,
        headers: Mapping[str, str] | None = None,
        **tensors: Array,
    ) -> list[Emotion]:
        """As EmotionClient.predict_tensors."""
        request = named(from_tensors(tensors), request_id, headers)
        with identified(request.request_id):
            return await self._ask(request, self._budget(timeout_s))

    async def close(self) -> None:
        """Lets go of the connection."""
        await self._transport.close()

    async def __aenter__(self) -> AsyncEmotionClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def _predict(
        self,
        item: Item,
        timeout_s: float | None,
        request_id: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Emotion:
        budget = self._budget(timeout_s)
        # Reading a file or converting an image would hold up the loop.
        request = named(await asyncio.to_thread(from_item, item, self.limits), request_id, headers)
        with identified(request.request_id):
            return (await self._ask(request, budget))[0]

    async def _ask(self, request: Infer, budget: Budget) -> list[Emotion]:
        while True:
            try:
                return emotions_from(await self._transport.call(request, budget.remaining_s()))
            except ServerUnavailable as error:
                await asyncio.sleep(pause_s(budget, request, error))
