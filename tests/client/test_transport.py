"""Transports over real sockets: servers that aren't there, hang up, keep silent, talk nonsense, or answer."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest

from cmt_client import (
    AsyncEmotionClient,
    DeadlineExceeded,
    EmotionClient,
    EmotionError,
    InferenceFailed,
    InvalidInput,
    ServerUnavailable,
    UnknownPipeline,
    connect,
    connect_async,
)
from cmt_client.operations import Infer, ModelReady, ServerLive
from cmt_client.transport import (
    Address,
    AsyncGrpcTransport,
    BlockingTransport,
    GrpcTransport,
    Transport,
    max_message_bytes,
)
from cmt_pipeline.constants import MIB
from cmt_pipeline.limits import DEFAULT_LIMITS, Limits

SCHEMES = ("grpc", "http")
Tell = Callable[..., Any]


def tell_blocking(url: str, timeout_s: float = 5.0, retries: int = 0) -> Any:
    with EmotionClient(url, timeout_s=timeout_s, retries=retries) as client:
        return client.predict(text="hello")


def tell_waiting(url: str, timeout_s: float = 5.0, retries: int = 0) -> Any:
    async def main() -> Any:
        async with AsyncEmotionClient(url, timeout_s=timeout_s, retries=retries) as client:
            return await client.predict(text="hello")

    return asyncio.run(main())


@pytest.fixture(params=[tell_blocking, tell_waiting], ids=["blocking", "asyncio"])
def tell(request: pytest.FixtureRequest) -> Tell:
    chosen: Tell = request.param
    return chosen


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("localhost:8001", "grpc://localhost:8001"),
        ("grpc://localhost:8001", "grpc://localhost:8001"),
        ("grpcs://host.example:443/", "grpcs://host.example:443"),
        ("http://localhost:8000", "http://localhost:8000"),
        ("https://host.example/triton/", "https://host.example/triton"),
        ("[::1]:8001", "grpc://[::1]:8001"),
    ],
)
def test_urls(url: str, shown: str) -> None:
    assert str(Address.parse(url)) == shown


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost",
        "grpc://localhost",
        "ftp://x:1",
        "grpc://x:1/path",
        "http://",
        "http://x?y=1",
        "x:port",
    ],
)
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(ValueError, match=r"expected|[Pp]ort"):
        connect(url)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_nobody_there(tell: Tell, scheme: str, closed_port: int) -> None:
    with pytest.raises(ServerUnavailable, match=f"{scheme}://127.0.0.1:{closed_port}.*is the server running"):
        tell(f"{scheme}://127.0.0.1:{closed_port}")


def test_no_such_host(tell: Tell) -> None:
    for url in ("grpc://nobody.invalid:1", "http://nobody.invalid:1"):
        with pytest.raises(ServerUnavailable):
            tell(url)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_server_that_hangs_up(tell: Tell, scheme: str, rude_port: Callable[[bytes | None], int]) -> None:
    with pytest.raises(ServerUnavailable):
        tell(f"{scheme}://127.0.0.1:{rude_port(b'')}")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_server_that_never_answers(tell: Tell, scheme: str, rude_port: Callable[[bytes | None], int]) -> None:
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="in time"):
        tell(f"{scheme}://127.0.0.1:{rude_port(None)}", timeout_s=0.4)
    assert time.monotonic() - started > 0.35


OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (b"nonsense\r\n\r\n", ServerUnavailable),
        (OK % 100 + b"{", ServerUnavailable),  # died in the middle of its answer
        (OK % 5 + b"hello", InferenceFailed),
        (OK % 2 + b"{}", InferenceFailed),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 6\r\n\r\n<html>", ServerUnavailable),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 6\r\n\r\n<html>", InferenceFailed),
    ],
)
def test_http_servers_that_are_no_triton(
    tell: Tell, rude_port: Callable[[bytes | None], int], said: bytes, expected: type[EmotionError]
) -> None:
    with pytest.raises(expected):
        tell(f"http://127.0.0.1:{rude_port(said)}")


def test_grpc_to_a_port_that_speaks_http(tell: Tell, rude_port: Callable[[bytes | None], int]) -> None:
    with pytest.raises(ServerUnavailable):
        tell(f"grpc://127.0.0.1:{rude_port(b'HTTP/1.1 400 Bad Request' + 2 * bytes([13, 10]))}")


def test_both_protocols_give_the_answer(tell: Tell, wired: Any) -> None:
    emotion = tell(wired.url)
    assert emotion.label == "joy"
    assert emotion.probability == pytest.approx(0.6)
    assert (emotion.release, emotion.modalities) == (1, ("text",))


def test_tls_with_an_authority_of_ones_own(wired_tls: Any, pem: Any) -> None:
    with EmotionClient(wired_tls.url, root_certificates=pem.certificate) as client:
        assert client.predict(text="hello").label == "joy"

    async def main() -> str:
        async with AsyncEmotionClient(wired_tls.url, root_certificates=pem.certificate) as client:
            return (await client.predict(text="hello")).label

    assert asyncio.run(main()) == "joy"


def test_tls_refuses_an_unknown_authority(tell: Tell, wired_tls: Any) -> None:
    with pytest.raises(ServerUnavailable):
        tell(wired_tls.url)


def test_what_the_server_refuses(tell: Tell, wired: Any) -> None:
    internal = grpc.StatusCode.INTERNAL if wired.url.startswith("grpc") else 500
    wired.refuse = (internal, "in ensemble 'emotion_text', invalid_input(text.too_long): got 300 tokens")
    with pytest.raises(InvalidInput) as raised:
        tell(wired.url)
    assert (raised.value.field, raised.value.code) == ("text", "too_long")
    wired.refuse = (internal, "in ensemble 'emotion_text', engine broke")
    with pytest.raises(InferenceFailed, match="engine broke"):
        tell(wired.url)
    wired.refuse = (internal, "Request for unknown model: 'emotion_text' is not found")
    with pytest.raises(UnknownPipeline):
        tell(wired.url)
    wired.refuse = None
    assert tell(wired.url).label == "joy"


def test_one_client_serves_many_threads(wired: Any) -> None:
    with EmotionClient(wired.url) as client, ThreadPoolExecutor(8) as pool:
        labels = list(pool.map(lambda i: client.predict(text=f"text {i}").label, range(64)))
    assert labels == ["joy"] * 64


@pytest.mark.long
def test_threads_that_end_leave_nothing_open(wired: Any) -> None:
    with EmotionClient(wired.url) as client:
        client.predict(text="warm")

        def one() -> None:
            thread = threading.Thread(target=client.predict, kwargs={"text": "x"})
            thread.start()
            thread.join()

        one()
        before, many = len(os.listdir("/proc/self/fd")), 40
        for _ in range(many):
            one()
        # far from one a thread; the server in this process and gRPC itself open and close a few as they please
        assert len(os.listdir("/proc/self/fd")) < before + many / 2


@pytest.mark.long
def test_a_lost_server_is_found_again_within_the_retries(
    tell: Tell, closed_port: int, wired_grpc_at: Callable[[int], Any]
) -> None:
    url = f"grpc://127.0.0.1:{closed_port}"
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(tell, url, 20.0, 50)
        time.sleep(0.5)
        with wired_grpc_at(closed_port):
            assert answer.result(10).label == "joy"


def test_many_requests_at_once_are_all_sent() -> None:
    """Over HTTP, too: none waits in the client for another's answer."""
    many = 150

    async def main() -> None:
        came, all_came = 0, asyncio.Event()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal came
            await reader.readuntil(b"\r\n\r\n")
            came += 1
            if came == many:
                all_came.set()
            await all_came.wait()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            transport = connect_async(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            assert all(await asyncio.gather(*(transport.call(ServerLive(), 20.0) for _ in range(many))))
            await transport.close()

    asyncio.run(main())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_closing_ends_what_is_in_flight(scheme: str, rude_port: Callable[[bytes | None], int]) -> None:
    transport = connect(f"{scheme}://127.0.0.1:{rude_port(None)}")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(transport.call, ServerLive(), 60.0)
        time.sleep(0.3)
        transport.close()
        assert isinstance(waiting.exception(5), EmotionError)
    transport.close()
    with pytest.raises((RuntimeError, ValueError)):
        transport.call(ServerLive(), 1.0)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_cancelled_task_stays_cancelled(scheme: str, rude_port: Callable[[bytes | None], int]) -> None:
    async def main() -> None:
        transport = connect_async(f"{scheme}://127.0.0.1:{rude_port(None)}")
        task = asyncio.create_task(transport.call(ServerLive(), 60.0))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await transport.close()

    asyncio.run(main())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_readiness_of_an_absent_server_is_an_error_not_a_no(scheme: str, closed_port: int) -> None:
    transport = connect(f"{scheme}://127.0.0.1:{closed_port}")
    with pytest.raises(ServerUnavailable):
        transport.call(ModelReady("emotion"), 5.0)
    transport.close()


def test_messages_hold_what_the_limits_allow() -> None:
    limits = DEFAULT_LIMITS
    raw = limits.max_image_bytes + limits.max_audio_bytes + limits.max_text_bytes
    assert raw < max_message_bytes(limits) <= raw + MIB
    tiny = Limits(max_image_bytes=1, max_audio_bytes=1, max_text_bytes=1)
    assert max_message_bytes(tiny) > 8 * 4 * (3 * 224 * 224 + 16 * 16_000)


def test_large_requests_pass(wired: Any) -> None:
    transport = connect(wired.url)
    tensor = np.empty((1, 1), np.object_)
    tensor[0, 0] = bytes(12 * MIB)  # above gRPC's default of 4 MiB
    answer = transport.call(Infer("emotion_image", {"image": tensor}, ("probabilities",)), 20.0)
    transport.close()
    assert answer.outputs["probabilities"].shape == (1, 7)


@pytest.mark.parametrize("transport", [GrpcTransport, lambda *args: BlockingTransport(AsyncGrpcTransport(*args))])
def test_each_grpc_request_goes_to_the_next_server_of_a_name(
    transport: Callable[..., Transport], wired_grpc_at: Callable[[int], Any]
) -> None:
    """As a headless Service's name stands for all ready pods."""
    with wired_grpc_at(0) as first, wired_grpc_at(0) as second:
        addresses = ",".join(wired.url.removeprefix("grpc://") for wired in (first, second))
        name = Address("grpc", f"ipv4:{addresses}", False)
        with EmotionClient("many:1", transport=transport(name, DEFAULT_LIMITS, None)) as client:
            for _ in range(20):
                client.predict(text="hello")
        assert len(first.fake.calls) + len(second.fake.calls) == 20
        assert min(len(first.fake.calls), len(second.fake.calls)) >= 5
