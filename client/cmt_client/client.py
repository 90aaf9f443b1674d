"""EmotionClient: a face, a voice and a sentence in, an Emotion out; for asyncio: `cmt_client.async_client`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Literal, overload

from cmt_client.canary import CanaryMode, CanaryTransport, Routing
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
from cmt_client.session import EmotionSession
from cmt_client.transport import Transport, connect
from cmt_client.windows import LongEmotion, WindowEmotion, cut, long_emotion, mean_emotion, uncut_explained
from cmt_pipeline.limits import DEFAULT_LIMITS, Limits
from cmt_pipeline.tensors import Array
from cmt_session.options import TrackerOptions
from cmt_session.policy import Policy
from cmt_session.session import SessionState


class EmotionClient(ClientBase):
    """A blocking client; any number of threads may share one.

    url: `grpc://host:port`, `http://host:port`, `grpcs://…`, `https://…`, or `host:port` for gRPC. timeout_s:
    for a whole answer, retries included; retries: further tries when the server is unavailable (nothing else
    is repeated); retry_refused: of what it refuses for too much load, too; limits: those that the server was started
    with; canary: `follow` sends the share of requests that an upgrade under way asks for to the release on trial, and
    asks the live one when that fails, `only` sends all there; transport: instead of `url`'s own, for tests;
    root_certificates: PEM file of the authorities to trust under TLS.

    Raises ValueError for a URL that isn't one. Nothing is sent before the first question. Close it, or use
    `with`.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retries: int = DEFAULT_RETRIES,
        retry_refused: bool = True,
        limits: Limits = DEFAULT_LIMITS,
        canary: CanaryMode = "off",
        transport: Transport | None = None,
        root_certificates: Path | None = None,
    ) -> None:
        routing = Routing(canary)
        self._transport = transport or connect(url, limits, root_certificates)
        if canary != "off":
            self._transport = CanaryTransport(self._transport, routing)
        super().__init__(timeout_s, retries, limits, retry_refused)

    def predict(
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
        """The emotion of one item, from one or more modalities.

        image: a file (its bytes, its path, itself opened in binary mode, a row {"bytes", "path"}), an array of pixels,
        or a Pillow image. audio: a file, `Sound(samples, sample_rate_hz)`, that pair as a tuple, or a row {"array",
        "sampling_rate"}; what arrays may be is told by `cmt_client.arrays`. text: one utterance. video: a film, instead
        of image and audio; as `predict_video`, which tells more, and by several requests. timeout_s: instead of the
        client's. request_id: stands in the answer, in errors and in the server's log; made up when not given.
        headers: HTTP headers, or gRPC metadata, such as `traceparent`; that of a current OpenTelemetry span is sent
        anyway.

        Raises InvalidInput for what isn't accepted, and the ServiceErrors of `cmt_client.errors`.
        """
        if video is not None:
            check_film_alone(image, audio, request_id, headers)
            return self.predict_video(video, text=text, timeout_s=timeout_s).whole
        return self._predict({"image": image, "audio": audio, "text": text}, timeout_s, request_id, headers)

    def session(
        self,
        policy: Policy | str | Path | None = None,
        *,
        options: TrackerOptions | None = None,
        state: str | SessionState | None = None,
    ) -> EmotionSession:
        """A session with one person: `observe` asks, and says what is known over time and what the policy decides.

        policy: itself, the name of one that ships (`customer_service`, `tutoring`), or the path of a YAML file, which
        needs `pip install 'cmt-triton[policy]'`. options: by default the policy's, which use what its context allows
        alone. state: what a session's `state` was, to go on from. Raises InvalidPolicy, InvalidState.
        """
        return EmotionSession(self, policy, options, state)

    @overload
    def predict_many(
        self, items: Iterable[Item], *, concurrency: int = ..., timeout_s: float | None = ...
    ) -> list[Emotion | EmotionError]: ...

    @overload
    def predict_many(
        self,
        items: Iterable[Item],
        *,
        concurrency: int = ...,
        timeout_s: float | None = ...,
        errors: Literal["raise"],
    ) -> list[Emotion]: ...

    def predict_many(
        self,
        items: Iterable[Item],
        *,
        concurrency: int = DEFAULT_CONCURRENCY,
        timeout_s: float | None = None,
        errors: Literal["return", "raise"] = "return",
    ) -> Sequence[Emotion | EmotionError]:
        """The emotions of many items, in their order; an item is a dict of `predict`'s modalities.

        Each item is its own request, `concurrency` of them at a time: the server batches them, and a bad one
        harms no other. Its error stands in its place, or the first one is raised at the end with
        `errors="raise"`. timeout_s counts for each item by itself.
        """

        def one(item: Item) -> Emotion | EmotionError:
            try:
                return self._predict(item, timeout_s)
            except EmotionError as error:
                return error

        with ThreadPoolExecutor(at_least_one(concurrency), thread_name_prefix="cmt-predict") as pool:
            return settled(list(pool.map(one, items)), errors)

    def predict_long(
        self,
        *,
        audio: AudioInput,
        image: ImageInput | None = None,
        text: TextInput | None = None,
        window_s: float | None = None,
        concurrency: int = DEFAULT_CONCURRENCY,
        timeout_s: float | None = None,
    ) -> LongEmotion:
        """The emotion of a sound of any length: as a whole, and of each window of it with its start and end.

        window_s: the longest a window may be; the server's limit when None. A sound that one window holds is asked for
        as `predict` does, and has no windows. Image and text go with every window. Each window is its own request,
        `concurrency` of them at a time, and timeout_s counts for each by itself. How the whole is made of them, and
        what has to be installed for which files, is told by `cmt_client.windows`. Raises as `predict` does.
        """
        audio, beside = rereadable(audio), self._beside(image, text)
        answered: list[WindowEmotion] = []
        with closing(cut(audio, self.limits, window_s)) as windows:
            while group := next_windows(windows, concurrency):
                items = items_of(group, beside)
                emotions = self.predict_many(items, concurrency=concurrency, timeout_s=timeout_s, errors="raise")
                answered += answered_windows(group, emotions)
        if answered:
            return long_emotion(answered)
        with uncut_explained():
            return LongEmotion(self._predict({**beside, "audio": audio}, timeout_s))

    def predict_video(
        self,
        video: FileInput,
        *,
        text: TextInput | None = None,
        window_s: float | None = None,
        concurrency: int = DEFAULT_CONCURRENCY,
        timeout_s: float | None = None,
    ) -> LongEmotion:
        """The emotion of a film of any length: as `predict_long` of its sound, each window with pictures of its own.

        video: an MP4, MOV, WebM or MKV file (its bytes, its path, itself opened in binary mode), perhaps a silent one.
        Which pictures are taken is told by `cmt_client.film`; PyAV has to be installed. text goes with every window.
        Raises as `predict` does.
        """
        film, beside = rereadable(video), self._beside(None, text)
        answered: list[WindowEmotion] = []
        with closing(scenes(film, self.limits, window_s)) as shown:
            for scene in shown:
                items = items_of_scene(scene, beside)
                emotions = self.predict_many(items, concurrency=concurrency, timeout_s=timeout_s, errors="raise")
                answered.append(WindowEmotion(scene.start_s, scene.end_s, mean_emotion(emotions)))
        return film_emotion(answered)

    def predict_faces(
        self, image: ImageInput, *, concurrency: int = DEFAULT_CONCURRENCY, timeout_s: float | None = None
    ) -> list[Emotion]:
        """The emotion of each face in a picture, the most prominent first; `face.box` says where each is.

        Where no face is found, and from a release that looks for none, one answer, as `predict` gives. Pillow has to be
        installed where there are several. Whose a voice or a sentence is, a picture doesn't say: that is `predict`'s.
        Raises as `predict` does.
        """
        beside = self._beside(image, None)
        first = self._predict(beside, timeout_s)
        items = items_of_others(beside, first, self.limits)
        others = self.predict_many(items, concurrency=concurrency, timeout_s=timeout_s, errors="raise")
        return emotions_of_faces(first, others)

    def predict_tensors(
        self,
        *,
        timeout_s: float | None = None,
        request_id: str | None = None,
        headers: Mapping[str, str] | None = None,
        **tensors: Array,
    ) -> list[Emotion]:
        """The emotions of a batch that you preprocessed yourself (`cmt_pipeline.preprocess`), as one request.

        tensors: those of one or more modalities, [batch, …] as `cmt_pipeline.stages.READY` describes them:
        pixel_values; input_values and num_samples; input_ids and attention_mask. Raises as `predict` does.
        """
        request = named(from_tensors(tensors), request_id, headers)
        with identified(request.request_id):
            return self._ask(request, self._budget(timeout_s))

    def close(self) -> None:
        """Lets go of the connection."""
        self._transport.close()

    def __enter__(self) -> EmotionClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _predict(
        self,
        item: Item,
        timeout_s: float | None,
        request_id: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Emotion:
        budget = self._budget(timeout_s)
        request = named(from_item(item, self.limits), request_id, headers)
        with identified(request.request_id):
            return self._ask(request, budget)[0]

    def _ask(self, request: Infer, budget: Budget) -> list[Emotion]:
        while True:
            try:
                return emotions_from(self._transport.call(request, budget.remaining_s()))
            except ServerUnavailable as error:
                time.sleep(pause_s(budget, request, error))
