"""Callers who misbehave: they hang up, cancel, stop in the middle, send too much, or send what no server should read.

    with Misuse(grpc_url, http_url, items) as misuse: ...
    misuse.counts  # what became of each kind

None of it may cost another caller an answer, nor the server anything that it doesn't get back.
"""

from __future__ import annotations

import asyncio
import io
import json
import socket
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import TracebackType
from urllib.parse import urlsplit

import numpy as np
import soundfile

from cmt_client import AsyncEmotionClient, EmotionClient, EmotionError, Item
from cmt_perf.hostile import FORMS, INFER, send

PAUSE_S = 0.3  # between two of them, on average
MEGABYTES = (1.0, 5.0)
TOO_MUCH_AUDIO_S = 120
SOCKET_TIMEOUT_S = 20.0


class Misuse:
    """One of a kind after another, on a thread of its own, from entering until leaving."""

    def __init__(self, grpc_url: str, http_url: str, items: Sequence[Item], seed: int = 0) -> None:
        self.counts: Counter[str] = Counter()
        self._grpc_url, self._http_url, self._items = grpc_url, http_url, items
        self._random = np.random.default_rng(seed)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="misuse")
        self._kinds: dict[str, Callable[[], str]] = {
            "cancelled gRPC": lambda: asyncio.run(self._cancelled()),
            "hung up before the answer": lambda: self._hung_up(whole=True),
            "hung up in the middle": lambda: self._hung_up(whole=False),
            "no such tensor": lambda: self._status(json.dumps({"inputs": []}).encode()),
            "no JSON": lambda: self._status(b"\xff" * 2000),
            "audio that is too long": self._too_long,
            "hostile body": self._hostile,
        }

    def __enter__(self) -> Misuse:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self._random.exponential(PAUSE_S)):
            kind = list(self._kinds)[self._random.integers(len(self._kinds))]
            try:
                told = self._kinds[kind]()
            except OSError as error:  # of a server that was killed
                told = type(error).__name__
            self.counts[f"{kind}: {told}"] += 1

    async def _cancelled(self) -> str:
        async with AsyncEmotionClient(self._grpc_url, retries=0, canary="off") as client:
            asked = asyncio.create_task(client.predict(**self._items[self._random.integers(len(self._items))]))
            await asyncio.sleep(self._random.uniform(0, 0.1))
            asked.cancel()
            try:
                await asked
            except asyncio.CancelledError:
                return "cancelled"
            except EmotionError as error:
                return type(error).__name__
            return "answered"

    def _hung_up(self, whole: bool) -> str:
        """The connection closes once the request is sent, or half of it."""
        body = json.dumps({"inputs": [_text("Do you hear me?")]}).encode()
        head = f"POST {INFER} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        with self._connection() as connection:
            connection.sendall(head + (body if whole else body[: len(body) // 2]))
            self._over.wait(self._random.uniform(0, 0.05))
        return "hung up"

    def _status(self, body: bytes) -> str:
        """What a body is answered with."""
        head = f"POST {INFER} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
        with self._connection() as connection:
            connection.sendall(head + body)
            line = connection.makefile("rb").readline().split()
        return line[1].decode() if len(line) > 1 else "closed"

    def _connection(self) -> socket.socket:
        place = urlsplit(self._http_url)
        return socket.create_connection((place.hostname, place.port or 80), SOCKET_TIMEOUT_S)

    def _too_long(self) -> str:
        """Past the client's own checks: as samples of a sound file."""
        file = io.BytesIO()
        soundfile.write(file, np.zeros(16_000 * TOO_MUCH_AUDIO_S, np.int16), 16_000, format="WAV")
        try:
            with EmotionClient(self._http_url, retries=0, canary="off") as client:
                client.predict(audio=file.getvalue())
        except EmotionError as error:
            return type(error).__name__
        return "answered"

    def _hostile(self) -> str:
        form = FORMS[self._random.integers(3)]
        return str(send(self._http_url, replace(form, megabytes=float(self._random.choice(MEGABYTES)))))


def _text(said: str) -> dict[str, object]:
    return {"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": [said]}
