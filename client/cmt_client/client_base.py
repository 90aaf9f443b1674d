"""What the blocking and the asyncio client share: all that doesn't wait."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Literal

from cmt_client.encode import ENCODERS, ImageInput, TextInput
from cmt_client.errors import EmotionError, InvalidInput, ServerUnavailable
from cmt_client.film import Scene
from cmt_client.operations import Infer
from cmt_client.requests import Item
from cmt_client.result import Emotion
from cmt_client.retry import Allowance, Budget
from cmt_client.windows import LongEmotion, Window, WindowEmotion, long_emotion
from cmt_pipeline.limits import Limits

LOG = logging.getLogger(__name__)

DEFAULT_TIMEOUT_S = 30.0
DEFAULT_RETRIES = 2
DEFAULT_CONCURRENCY = 8


class ClientBase:
    """What both clients know."""

    def __init__(self, timeout_s: float, retries: int, limits: Limits, retry_refused: bool) -> None:
        self._timeout_s = timeout_s
        self._retries = retries
        self._allowance = Allowance() if retry_refused else Allowance(0)
        self.limits = limits

    def _budget(self, timeout_s: float | None) -> Budget:
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        return Budget(timeout_s, self._retries, allowance=self._allowance)

    def _beside(self, image: ImageInput | None, text: TextInput | None) -> Item:
        """What goes with every window of a sound, as bytes: an open file would be read by several at once."""
        given = {"image": image, "text": text}
        return {m: ENCODERS[m](value, self.limits) for m, value in given.items() if value is not None}  # type: ignore[return-value]


def pause_s(budget: Budget, request: Infer, error: ServerUnavailable) -> float:
    """Seconds to wait before another try, which is logged. Raises `error` where there is none."""
    seconds = budget.pause_s(error)
    LOG.info("trying again in %.2f s: %s", seconds, error, extra={"request_id": request.request_id})
    return seconds


def next_windows(windows: Iterator[Window], concurrency: int) -> list[Window]:
    return list(islice(windows, at_least_one(concurrency)))


def items_of(windows: Sequence[Window], beside: Item) -> list[Item]:
    return [{**beside, "audio": window.audio} for window in windows]


def answered_windows(windows: Sequence[Window], emotions: Sequence[Emotion]) -> list[WindowEmotion]:
    return [WindowEmotion(w.start_s, w.end_s, emotion) for w, emotion in zip(windows, emotions, strict=True)]


def check_film_alone(image: object, audio: object, request_id: str | None, headers: Mapping[str, str] | None) -> None:
    """A film brings image and sound itself, and is several requests."""
    if image is not None or audio is not None:
        raise InvalidInput(
            "video", "unexpected", "got a film and an image or a sound; expected the film, and text at most"
        )
    if request_id is not None or headers is not None:
        raise ValueError("a film is asked for in several requests: got a request_id or headers; expected none")


def items_of_scene(scene: Scene, beside: Item) -> list[Item]:
    sound: Item = {} if scene.audio is None else {"audio": scene.audio}
    return [{**beside, **sound, "image": picture} for picture in scene.pictures]


def film_emotion(windows: Sequence[WindowEmotion]) -> LongEmotion:
    """No windows where there is but one."""
    return long_emotion(windows) if len(windows) > 1 else LongEmotion(windows[0].emotion)


def at_least_one(concurrency: int) -> int:
    if concurrency < 1:
        raise ValueError(f"concurrency: got {concurrency}; expected 1 or more")
    return concurrency


def settled(results: list[Any], errors: Literal["return", "raise"]) -> list[Any]:
    if errors == "raise":
        for result in results:
            if isinstance(result, EmotionError):
                raise result
    return results
