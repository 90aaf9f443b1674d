"""The endpoints that answer: one moment, several, and films and sounds of any length."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any, cast

from fastapi import APIRouter, Request
from starlette.responses import StreamingResponse

from cmt_client.async_client import AsyncEmotionClient
from cmt_client.errors import DeadlineExceeded
from cmt_client.result import Emotion
from cmt_client.windows import LongEmotion, WindowEmotion, long_emotion
from cmt_gateway.answers import Answer, Batch, Faces, Settled, Window
from cmt_gateway.inputs import (
    BATCH_BODY,
    BODY,
    JSON_TYPE,
    PICTURE_BODY,
    content_type_of,
    fields_of,
    item_of,
    items_in,
    parsed,
)
from cmt_gateway.problems import RESPONSES, Refused, refused
from cmt_pipeline.modality import MODALITIES
from cmt_session.context import Ruling

LINES_TYPE = "application/x-ndjson"
Fields = Mapping[str, bytes | str]
#: What a film holds.
OF_FILM = ("image", "audio")


def emotion_routes(client: AsyncEmotionClient, ruling: Ruling) -> APIRouter:
    """All under /v1; their bodies are read by the door."""
    router = APIRouter(prefix="/v1", tags=["emotion"], responses=RESPONSES)
    asked = Asked(client, ruling)

    @router.post("/emotion", openapi_extra=BODY, response_model_exclude_none=False)
    async def emotion(request: Request) -> Answer:
        """The emotion of one moment: any of a face, a voice and a sentence, or a short film in place of the first two.

        As a form with files, or as JSON with base64. `X-Timeout-Ms` says how long the caller waits, `X-Request-ID`
        names the request in logs and traces.
        """
        fields = await fields_of(request.headers, request.state.body)
        asked.check(request, fields)
        if "video" in fields:
            return Answer.of_long(await asked.film(request, fields), request.state.request_id)
        found = await asked.moment(request, fields)
        return Answer.of(found, request.state.request_id)

    @router.post("/faces", openapi_extra=PICTURE_BODY)
    async def faces(request: Request) -> Faces:
        """Every face in a picture, up to eight, each read by itself; without voice and words, which are one person's.

        One answer where no face is found, and from a release that looks for none.
        """
        fields = await fields_of(request.headers, request.state.body)
        if set(fields) != {"image"}:
            raise Refused(422, "unexpected", f"got {', '.join(sorted(fields))}; expected `image` alone", field="body")
        asked.check(request, fields)
        return Faces(faces=[Answer.of(face, request.state.request_id) for face in await asked.faces(request, fields)])

    @router.post("/emotion/batch", openapi_extra=BATCH_BODY)
    async def batch(request: Request) -> Batch:
        """Up to 32 moments at once, each answered or refused on its own."""
        if content_type_of(request.headers) != JSON_TYPE:
            raise Refused(415, "content_type", f"expected {JSON_TYPE}")
        items = await asyncio.to_thread(lambda: items_in(parsed(request.state.body)))
        return Batch(items=await asyncio.gather(*(asked.settled(request, item) for item in items)))

    @router.post(
        "/clips",
        openapi_extra=BODY,
        response_class=StreamingResponse,
        responses={
            200: {"content": {LINES_TYPE: {}}, "description": "A window a line, then the whole: `window`, `whole`."}
        },
    )
    async def clips(request: Request) -> StreamingResponse:
        """A film, or a sound of any length with a picture and text beside it, window by window as they are answered.

        A line of JSON each: `{"window": …}`, at the end `{"whole": …}`; or `{"problem": …}`, which ends it.
        """
        fields = await fields_of(request.headers, request.state.body)
        if not {"video", "audio"} & set(fields):
            raise Refused(422, "missing", "expected `video` or `audio`", field="body")
        asked.check(request, fields)
        windows = asked.windows(request, fields)
        first = await anext(windows, None)  # what is wrong with the file shows here, and gets a status of its own
        return StreamingResponse(asked.lines(request, fields, first, windows), media_type=LINES_TYPE)

    return router


class Asked:
    """Asks Triton on a request's behalf, within its deadline."""

    def __init__(self, client: AsyncEmotionClient, ruling: Ruling) -> None:
        self._client, self._ruling = client, ruling

    def check(self, request: Request, fields: Iterable[str]) -> None:
        """Raises InvalidInput for a modality that the deployment's context doesn't allow."""
        shown = {m for field in fields for m in (OF_FILM if field == "video" else (field,))}
        modalities = [m for m in MODALITIES if m in shown]
        self._ruling.check(modalities)
        request.state.said["modalities"] = modalities

    async def moment(self, request: Request, fields: Fields) -> Emotion:
        item = item_of(fields)
        found = await self._client.predict(
            **item, timeout_s=left_s(request), request_id=request.state.request_id, headers=_trace(request)
        )
        return _made_by(request, found)

    async def faces(self, request: Request, fields: Fields) -> list[Emotion]:
        left = left_s(request)
        found: list[Emotion] = await _within(self._client.predict_faces(fields["image"], timeout_s=left), left)
        _made_by(request, found[0])
        return found

    async def film(self, request: Request, fields: Fields) -> LongEmotion:
        if set(fields) - {"video", "text"}:
            raise Refused(422, "unexpected", "expected a film and text at most", field="video")
        video, text = cast(bytes, fields["video"]), cast("str | None", fields.get("text"))
        found: LongEmotion = await _within(self._client.predict_video(video, text=text), left_s(request))
        _made_by(request, found.whole)
        return found

    async def settled(self, request: Request, item: Fields | Refused) -> Settled:
        """One of a batch."""
        try:
            if isinstance(item, Refused):
                raise item
            self.check(request, item)
            return Settled(answer=Answer.of(await self.moment(request, item), request.state.request_id))
        except Exception as error:
            problem = refused(error)
            request.state.said.setdefault("refused", []).append(problem.code)
            return Settled(problem=problem.problem(request.state.request_id))

    async def windows(self, request: Request, fields: Fields) -> AsyncIterator[WindowEmotion]:
        """Each within what is left of the deadline."""
        text = cast("str | None", fields.get("text"))
        if "video" in fields:
            if set(fields) - {"video", "text"}:
                raise Refused(422, "unexpected", "expected a film and text at most", field="video")
            found = self._client.stream_video(cast(bytes, fields["video"]), text=text)
        else:
            image = cast("bytes | None", fields.get("image"))
            found = self._client.stream_long(audio=cast(bytes, fields["audio"]), image=image, text=text)
        try:
            while True:
                yield await _within(anext(found), left_s(request))
        except StopAsyncIteration:
            return

    async def lines(
        self, request: Request, fields: Fields, first: WindowEmotion | None, rest: AsyncIterator[WindowEmotion]
    ) -> AsyncIterator[bytes]:
        windows, request_id = [first] if first else [], request.state.request_id
        try:
            if first:
                yield _line("window", Window.of(first))
            async for window in rest:
                windows.append(window)
                yield _line("window", Window.of(window))
            whole = long_emotion(windows).whole if windows else await self.moment(request, fields)
            yield _line("whole", Answer.of(_made_by(request, whole), request_id))
        except Exception as error:
            problem = refused(error)
            request.state.said["code"] = problem.code
            yield _line("problem", problem.problem(request_id))


def left_s(request: Request) -> float:
    """Of the request's deadline. Raises DeadlineExceeded when nothing is."""
    left: float = request.state.deadline - time.monotonic()
    if left <= 0:
        raise DeadlineExceeded("the request's time was over")
    return left


async def _within(work: Any, seconds: float) -> Any:
    try:
        return await asyncio.wait_for(work, seconds)
    except asyncio.TimeoutError:
        raise DeadlineExceeded("the request's time was over") from None


def _trace(request: Request) -> dict[str, str]:
    """W3C trace context, for Triton's trace."""
    return {name: request.headers[name] for name in ("traceparent", "tracestate") if name in request.headers}


def _made_by(request: Request, found: Emotion) -> Emotion:
    request.state.said |= {"release": found.release, "digest": found.digest}
    return found


def _line(kind: str, value: Any) -> bytes:
    return f'{{"{kind}":{value.model_dump_json(exclude_none=True)}}}\n'.encode()
