"""Who asks a server in a benchmark: our client, or the plainest client that a peer's users would write."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from cmt_client import AsyncEmotionClient, Item
from cmt_client.canary import CanaryMode

if TYPE_CHECKING:
    import httpx

TIMEOUT_S = 900.0  # a peer may compile as it is asked first

#: emotion: a Triton with our pipeline's contract; form: files posted as a form; tensors: a Triton model of raw bytes.
Kind = Literal["emotion", "form", "tensors"]

FORM_PATH = "/predict"
TENSORS_MODEL = "emotion"

Answer = tuple[int, tuple[float, ...]]


class PeerFailed(Exception):
    """A peer answered with an error, or not at all."""


class Asks(Protocol):
    async def ask(self, item: Item) -> Answer:
        """Release (0 where there is none) and probabilities. EmotionError or PeerFailed."""
        ...


@contextlib.asynccontextmanager
async def client_of(kind: Kind, url: str, retries: int = 0, canary: CanaryMode = "off") -> AsyncIterator[Asks]:
    """A client of a server of that kind, closed at the end. ValueError for an unknown kind."""
    if kind == "emotion":
        async with AsyncEmotionClient(url, timeout_s=TIMEOUT_S, retries=retries, canary=canary) as client:
            yield _Emotion(client)
    elif kind == "form":
        import httpx

        async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S) as http:
            yield _Form(http)
    elif kind == "tensors":
        import tritonclient.grpc.aio as triton

        async with triton.InferenceServerClient(url.removeprefix("grpc://")) as tensors:
            yield _Tensors(tensors)
    else:
        raise ValueError(f"kind: got {kind!r}; expected emotion, form or tensors")


class _Emotion:
    def __init__(self, client: AsyncEmotionClient) -> None:
        self._client = client

    async def ask(self, item: Item) -> Answer:
        emotion = await self._client.predict(**item)
        return emotion.release, tuple(emotion.probabilities.values())


class _Form:
    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def ask(self, item: Item) -> Answer:
        import httpx

        files = {m: (m, _bytes(item[m])) for m in ("image", "audio") if m in item}
        try:
            answered = await self._client.post(FORM_PATH, files=files, data={"text": item.get("text", "")})
            answered.raise_for_status()
        except httpx.HTTPError as error:
            raise PeerFailed(f"{type(error).__name__}: {error}") from error
        return 0, tuple(answered.json()["probabilities"])


class _Tensors:
    def __init__(self, client: Any) -> None:
        self._client = client

    async def ask(self, item: Item) -> Answer:
        import tritonclient.grpc as triton
        from tritonclient.utils import InferenceServerException

        inputs = []
        for name, value in item.items():
            tensor = triton.InferInput(name, [1, 1], "BYTES")
            tensor.set_data_from_numpy(np.array([[_bytes(value)]], dtype=object))
            inputs.append(tensor)
        try:
            answered = await self._client.infer(TENSORS_MODEL, inputs, client_timeout=TIMEOUT_S)
        except InferenceServerException as error:
            raise PeerFailed(str(error)) from error
        return 0, tuple(float(p) for p in answered.as_numpy("probabilities")[0])


def _bytes(value: object) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes):
        return value
    raise ValueError(f"an input of a benchmark: got {type(value).__name__}; expected bytes or text")
