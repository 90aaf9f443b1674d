"""Request ids and trace context, on the real Triton: in answers, errors and the spans that it exports."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from cmt_client import EmotionClient, FakeTransport, InferenceFailed, InvalidInput, Transport, connect
from cmt_client.operations import Infer
from cmt_client.tracing import request_headers
from tiny_triton import TinyServer, python_model, write_model

TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"
WAIT_S = 5.0
#: Over gRPC, Triton 2.51 begins a trace of its own for about 1 in 40 requests that carry a parent.
ATTEMPTS = 5


class Collector:
    """An OTLP/HTTP endpoint that keeps what it is sent. seen: set when something new has come."""

    def __init__(self) -> None:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers["Content-Length"]))
                with collector.seen:
                    collector.data += data
                    collector.seen.notify_all()
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self.data = b""
        self.seen = threading.Condition()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1/traces"

    def __enter__(self) -> Collector:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def has(self, trace: str) -> bool:
        with self.seen:
            return self.seen.wait_for(lambda: trace.encode() in self.data, WAIT_S)  # OTLP's JSON has ids in hex


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TinyServer, Collector]]:
    folder = tmp_path_factory.mktemp("traced")
    write_model(folder / "models", "tiny", python_model())
    settings = ("mode=opentelemetry", "rate=1", "level=TIMESTAMPS")
    with Collector() as collector:
        exported = (f"opentelemetry,url={collector.url}", "opentelemetry,bsp_schedule_delay=50")
        flags = [f"--trace-config={setting}" for setting in (*settings, *exported)]
        with TinyServer(folder / "models", folder / "server", flags) as server:
            yield server, collector


@pytest.fixture(params=["http", "grpc"])
def transport(request: pytest.FixtureRequest, traced: tuple[TinyServer, Collector]) -> Iterator[Transport]:
    port = traced[0].ports[0 if request.param == "http" else 1]
    opened = connect(f"{request.param}://127.0.0.1:{port}")
    yield opened
    opened.close()


def ask(transport: Transport, request_id: str, headers: dict[str, str], dtype: type = np.float32) -> str:
    asked = Infer("tiny", {"x": np.ones(1, dtype)}, ("y",), request_id, headers)
    return transport.call(asked, WAIT_S).request_id


def continued(trace: str, collector: Collector, request: Callable[[], str]) -> str:
    """The request's answer, once a span of it was seen in the trace."""
    for _ in range(ATTEMPTS):
        answer = request()
        if collector.has(trace):
            return answer
    pytest.fail(f"no span continues the trace, of {ATTEMPTS} requests")


def test_triton_gives_the_id_back_and_continues_the_trace(
    transport: Transport, traced: tuple[TinyServer, Collector], request: pytest.FixtureRequest
) -> None:
    trace = TRACE[:-1] + ("1" if "http" in request.node.name else "2")
    headers = request_headers({"traceparent": TRACEPARENT.replace(TRACE, trace)})
    assert continued(trace, traced[1], lambda: ask(transport, "order-17", headers)) == "order-17"


def test_a_current_span_is_continued(transport: Transport, traced: tuple[TinyServer, Collector]) -> None:
    trace = pytest.importorskip("opentelemetry.trace")
    tracer = pytest.importorskip("opentelemetry.sdk.trace").TracerProvider().get_tracer("caller")
    assert "traceparent" not in request_headers({})
    with tracer.start_as_current_span("question") as span:
        trace_id = trace.format_trace_id(span.get_span_context().trace_id)
        continued(trace_id, traced[1], lambda: ask(transport, "a", request_headers({"X-Other": "kept"})))
        assert request_headers({"x-other": "kept"}).keys() == {"x-other", "traceparent"}
        assert request_headers({"Traceparent": TRACEPARENT})["traceparent"] == TRACEPARENT


def test_tritons_own_errors_dont_name_the_request_twice(transport: Transport) -> None:
    with pytest.raises(InvalidInput) as refused:
        ask(transport, "order-17", {}, np.int64)
    assert "order-17" not in str(refused.value)


Predict = Callable[[FakeTransport], object]
ANSWERS: dict[str, Predict] = {
    "given": lambda fake: EmotionClient("fake:1", transport=fake).predict(text="hello", request_id="order-17"),
    "made up": lambda fake: EmotionClient("fake:1", transport=fake).predict(text="hello"),
}


@pytest.mark.parametrize("which", ANSWERS)
def test_answers_and_errors_name_their_request(which: str) -> None:
    fake = FakeTransport()
    emotion = ANSWERS[which](fake)
    sent = next(call.request_id for call in fake.calls if isinstance(call, Infer))
    assert emotion.request_id == sent  # type: ignore[attr-defined]
    assert sent == "order-17" if which == "given" else len(sent) == 32
    fake.fail(InferenceFailed("broken"))
    with pytest.raises(InferenceFailed, match=r"^broken \[request id: .+\]$") as failed:
        ANSWERS[which](fake)
    assert failed.value.request_id
    assert which != "given" or failed.value.request_id == "order-17"


def test_a_retry_keeps_its_id_and_two_requests_have_two(tmp_path: Path) -> None:
    fake = FakeTransport()
    fake.fail(ConnectionError("gone"))
    with EmotionClient("fake:1", transport=fake) as client:
        first = client.predict(text="hello").request_id
        second = client.predict(text="hello").request_id
    ids = [call.request_id for call in fake.calls if isinstance(call, Infer)]
    assert ids == [first, first, second]
    assert first != second


def test_a_retry_is_logged_with_its_request_and_without_content(caplog: pytest.LogCaptureFixture) -> None:
    fake = FakeTransport()
    fake.fail(ConnectionError("gone"))
    with caplog.at_level("DEBUG"), EmotionClient("fake:1", transport=fake) as client:
        client.predict(text="my diary of yesterday", request_id="order-17")
        with pytest.raises(InvalidInput):
            client.predict(text="my diary of yesterday" * 1000)
    (record,) = [record for record in caplog.records if record.name == "cmt_client.client_base"]
    assert record.getMessage().startswith("trying again in")
    assert vars(record)["request_id"] == "order-17"
    assert "diary" not in caplog.text
