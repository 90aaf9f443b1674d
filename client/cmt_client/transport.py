"""Transports: carry an operation to a server and bring back its answer, or an error of ours.

`Transport` and `AsyncTransport` are the whole interface: a `call` and a `close`. They are implemented over
tritonclient's gRPC and HTTP clients. tritonclient's blocking HTTP client runs on gevent, is bound to the
thread that made it and leaves four file descriptors behind for each thread that used it; the blocking HTTP
transport therefore drives the asyncio one on a thread of its own, and any number of threads may share it.

Protocol libraries load when a transport is made, not before.
"""

from __future__ import annotations

import asyncio
import math
import ssl
import threading
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar
from urllib.parse import urlsplit

from cmt_client.errors import ServerUnavailable, translated
from cmt_client.operations import Operation, Wire
from cmt_pipeline.constants import CONTROL_HEADER, MIB
from cmt_pipeline.limits import DEFAULT_LIMITS, MAX_BATCH_SIZE, Limits
from cmt_pipeline.stages import READY

T = TypeVar("T")

SCHEMES: dict[str, tuple[Literal["grpc", "http"], bool]] = {
    "grpc": ("grpc", False),
    "grpcs": ("grpc", True),
    "http": ("http", False),
    "https": ("http", True),
}
# gRPC waits a second, later two minutes, before it dials a lost server again; a retry must find it sooner.
# ("min" isn't a pause: it is how long gRPC lets a connection take, and stays at its 20 s.)
RECONNECT_MS = {"initial": 100, "max": 2_000}
#: A name may stand for several servers, as a headless Service's does: each request goes to the next.
ROUND_ROBIN = '{"loadBalancingConfig": [{"round_robin": {}}]}'


class Transport(Protocol):
    """Carries operations for blocking callers, from any number of threads."""

    def call(self, operation: Operation[T], timeout_s: float) -> T:
        """Raises EmotionError; DeadlineExceeded after `timeout_s` seconds."""

    def close(self) -> None:
        """Lets go of connections; a later call fails."""


class AsyncTransport(Protocol):
    """Carries operations for asyncio callers, within one event loop."""

    async def call(self, operation: Operation[T], timeout_s: float) -> T:
        """Raises EmotionError; DeadlineExceeded after `timeout_s` seconds."""

    async def close(self) -> None:
        """Lets go of connections; a later call fails."""


@dataclass(frozen=True)
class Address:
    """A parsed URL. target: what tritonclient calls the URL, `host:port` with HTTP's base path."""

    protocol: Literal["grpc", "http"]
    target: str
    tls: bool

    @classmethod
    def parse(cls, url: str) -> Address:
        """From `grpc://host:port`, `grpcs://…`, `http://…`, `https://…` or a bare `host:port`, which is gRPC.

        ValueError for anything else.
        """
        parts = urlsplit(url if "://" in url else f"grpc://{url}")
        scheme = SCHEMES.get(parts.scheme)
        path = parts.path.rstrip("/")
        whole = scheme and parts.hostname and (scheme[0] == "http" or (parts.port and not path))
        if not scheme or not whole or parts.query or parts.fragment:
            raise ValueError(
                f"server URL: got {url!r}; expected grpc://HOST:PORT, grpcs://HOST:PORT, "
                "http://HOST:PORT, https://HOST:PORT or HOST:PORT (gRPC)"
            )
        return cls(scheme[0], parts.netloc + path, scheme[1])

    def __str__(self) -> str:
        return f"{self.protocol}{'s' if self.tls else ''}://{self.target}"


def connect(url: str, limits: Limits = DEFAULT_LIMITS, root_certificates: Path | None = None) -> Transport:
    """A transport for blocking callers; nothing is sent yet. ValueError for a URL that isn't one.

    root_certificates: PEM file of the authorities to trust under TLS, instead of the system's.
    """
    address = Address.parse(url)
    if address.protocol == "grpc":
        return GrpcTransport(address, limits, root_certificates)
    return BlockingTransport(AsyncHttpTransport(address, root_certificates))


def connect_async(url: str, limits: Limits = DEFAULT_LIMITS, root_certificates: Path | None = None) -> AsyncTransport:
    """As `connect`, for asyncio callers."""
    address = Address.parse(url)
    if address.protocol == "grpc":
        return AsyncGrpcTransport(address, limits, root_certificates)
    return AsyncHttpTransport(address, root_certificates)


def max_message_bytes(limits: Limits) -> int:
    """The largest message of either entrance, with room for names and shapes."""
    raw = limits.max_image_bytes + limits.max_audio_bytes + limits.max_text_bytes
    specs = [spec for ready in READY.values() for spec in ready]
    item = sum(spec.numpy_dtype.itemsize * math.prod(axis.sizes[-1] for axis in spec.axes) for spec in specs)
    return max(raw, MAX_BATCH_SIZE * item) + MIB


class GrpcTransport:
    """Over tritonclient.grpc, whose client is thread-safe."""

    def __init__(self, address: Address, limits: Limits, root_certificates: Path | None) -> None:
        from tritonclient.grpc import InferenceServerClient

        self._where = str(address)
        self._wire = _grpc_wire()
        self._client = InferenceServerClient(**_grpc_settings(address, limits, root_certificates))

    def call(self, operation: Operation[T], timeout_s: float) -> T:
        with translated(self._where, operation.failure):
            arguments = operation.arguments(self._wire) | operation.deadline(timeout_s)
            reply = getattr(self._client, operation.method)(**arguments, client_timeout=timeout_s)
        return _decoded(operation, reply, self._where)

    def close(self) -> None:
        self._client.close()


class AsyncGrpcTransport:
    """Over tritonclient.grpc.aio. The channel is made at the first call, in the caller's event loop."""

    def __init__(self, address: Address, limits: Limits, root_certificates: Path | None) -> None:
        self._where = str(address)
        self._wire = _grpc_wire()
        self._settings = _grpc_settings(address, limits, root_certificates)
        self._client: Any = None

    async def call(self, operation: Operation[T], timeout_s: float) -> T:
        from tritonclient.grpc.aio import InferenceServerClient

        with translated(self._where, operation.failure):
            self._client = self._client or InferenceServerClient(**self._settings)
            arguments = operation.arguments(self._wire) | operation.deadline(timeout_s)
            reply = await getattr(self._client, operation.method)(**arguments, client_timeout=timeout_s)
        return _decoded(operation, reply, self._where)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()


class AsyncHttpTransport:
    """Over tritonclient.http.aio. The session is made at the first call, in the caller's event loop."""

    def __init__(self, address: Address, root_certificates: Path | None) -> None:
        import tritonclient.http

        self._where = str(address)
        self._wire = Wire(tritonclient.http, CONTROL_HEADER, {})
        context = ssl.create_default_context(cafile=root_certificates) if address.tls else None
        # conn_timeout bounds a whole request: `call` does that itself. conn_limit: with tritonclient's 100, the next
        # request would wait here, out of the server's sight, its deadline running; as over gRPC, the server decides.
        self._settings = {
            "url": address.target,
            "ssl": address.tls,
            "ssl_context": context,
            "conn_timeout": None,
            "conn_limit": 0,
        }
        self._client: Any = None

    async def call(self, operation: Operation[T], timeout_s: float) -> T:
        from tritonclient.http.aio import InferenceServerClient

        with translated(self._where, operation.failure):
            self._client = self._client or InferenceServerClient(**self._settings)
            arguments = operation.arguments(self._wire) | operation.deadline(timeout_s)
            reply = await asyncio.wait_for(getattr(self._client, operation.method)(**arguments), timeout_s)
        return _decoded(operation, reply, self._where)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()


class BlockingTransport:
    """A Transport over an AsyncTransport, which runs in an event loop on a thread of its own."""

    def __init__(self, inner: AsyncTransport) -> None:
        self._inner = inner
        self._closed = False
        self._closing = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="cmt-client", daemon=True)
        self._thread.start()

    def call(self, operation: Operation[T], timeout_s: float) -> T:
        with self._closing:  # whatever is scheduled before `close` is ended by it
            if self._closed:
                raise RuntimeError("the client is closed")
            future = asyncio.run_coroutine_threadsafe(self._inner.call(operation, timeout_s), self._loop)
        try:
            return future.result()
        except CancelledError as error:
            raise ServerUnavailable("the client was closed before the answer came") from error
        finally:
            future.cancel()  # when the waiting thread was interrupted; else it is done

    def close(self) -> None:
        with self._closing:
            if self._closed:
                return
            self._closed = True
        asyncio.run_coroutine_threadsafe(self._finish(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _finish(self) -> None:
        """Ends what is in flight, so that no thread waits for it for ever."""
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._inner.close()


def _grpc_wire() -> Wire:
    import tritonclient.grpc

    return Wire(tritonclient.grpc, f"triton-grpc-protocol-{CONTROL_HEADER}", {"as_json": True})


def _grpc_settings(address: Address, limits: Limits, root_certificates: Path | None) -> dict[str, Any]:
    size = max_message_bytes(limits)
    options: list[tuple[str, str | int]] = [
        ("grpc.max_send_message_length", size),
        ("grpc.max_receive_message_length", size),
        ("grpc.service_config", ROUND_ROBIN),
    ]
    options += [(f"grpc.{which}_reconnect_backoff_ms", wait) for which, wait in RECONNECT_MS.items()]
    roots = str(root_certificates) if root_certificates else None
    return {"url": address.target, "ssl": address.tls, "root_certificates": roots, "channel_args": options}


def _decoded(operation: Operation[T], reply: Any, where: str) -> T:
    try:
        return operation.decode(reply)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise operation.failure(f"{where} answered with something that isn't Triton's: {error!r}") from error
