"""Who is let in, how often, how many at once and with how much; what is told of it and what isn't."""

from __future__ import annotations

import asyncio
import json
import logging
import stat
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cmt_client.fake import AsyncFakeTransport, FakeTransport
from cmt_client.operations import Infer, ModelReady
from cmt_gateway.app import Gateway
from cmt_gateway.keys import PREFIX, Keys, new_key
from cmt_gateway.options import GatewayOptions
from gateways import asking

SECRET = "nobody-may-read-this"
HEADERS = ("Authorization", "X-API-Key")


def test_a_key_opens_and_nothing_else_does(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    key, other = new_key(file, "shop"), new_key(file, "school")
    assert key.startswith(PREFIX)
    assert key not in file.read_text(), "hashed at rest"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    client, _ = asking(keys=file)
    for headers in ({"Authorization": f"Bearer {key}"}, {"Authorization": f"bearer {other}"}, {"X-API-Key": key}):
        assert client.post("/v1/emotion", json={"text": "a"}, headers=headers).status_code == 200
    refused: list[dict[str, str]] = [
        {},
        {"Authorization": key},
        {"Authorization": f"Basic {key}"},
        {"Authorization": f"Bearer {key[:-1]}"},
        {"X-API-Key": ""},
        {"X-API-Key": "é"},
    ]
    for headers in refused:
        encoded = {name: value.encode() for name, value in headers.items()}
        answer = client.post("/v1/emotion", json={"text": "a"}, headers=encoded)
        assert (answer.status_code, answer.json()["code"], answer.headers["www-authenticate"]) == (401, "key", "Bearer")
    assert client.get("/livez").status_code == 200, "probes have no keys"


def test_keys_change_without_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    key = new_key(file, "shop")
    keys = Keys(file)
    later = new_key(file, "later")
    assert (keys.name_of(key), keys.name_of(later), keys.name_of("cmt_x")) == ("shop", "later", None)
    lines = file.read_text().split("\n")
    file.write_text("# shop left\n" + "\n".join(lines[1:]))
    assert (keys.name_of(key), keys.name_of(later)) == (None, "later")
    file.write_text("half a li")
    assert keys.name_of(later) == "later", "a file that is being written changes nothing"
    file.unlink()
    assert keys.name_of(later) == "later"
    with pytest.raises(ValueError, match="can't be read"):
        Keys(file)
    with pytest.raises(ValueError, match="expected up to 64"):
        new_key(file, "a b")
    new_key(file, "twice")
    with pytest.raises(ValueError, match="twice already"):
        new_key(file, "twice")


def test_nobody_is_let_in_from_elsewhere_without_being_told_to() -> None:
    with pytest.raises(ValueError, match="expected --keys FILE, or --anonymous"):
        GatewayOptions(host="0.0.0.0")
    assert GatewayOptions(host="0.0.0.0", anonymous=True).host == "0.0.0.0"
    with pytest.raises(ValueError, match="a certificate and its key"):
        GatewayOptions(certificate=Path("a.pem"))


def test_a_caller_has_a_share(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    keys = [new_key(file, "shop"), new_key(file, "school")]
    client, fake = asking(keys=file, rate="3/minute")
    statuses = [
        client.post("/v1/emotion", json={"text": "a"}, headers={"X-API-Key": key}).status_code
        for key in keys
        for _ in range(4)
    ]
    assert statuses == [200, 200, 200, 429] * 2
    answer = client.post("/v1/emotion", json={"text": "a"}, headers={"X-API-Key": keys[0]})
    assert answer.json()["code"] == "rate"
    assert 0 < answer.json()["retry_after_s"] <= 60
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert len(fake.calls) == 6


@pytest.mark.long
def test_bodies_are_bounded_each_and_together() -> None:
    client, fake = asking(max_body_bytes=1_000)
    large = client.post("/v1/emotion", json={"text": "a" * 2_000})
    assert (large.status_code, large.json()["code"]) == (413, "too_large")

    def unannounced() -> Any:
        for _ in range(20):
            yield b"a" * 100

    headers = {"Content-Type": "application/json"}
    streamed = client.post("/v1/emotion", content=unannounced(), headers=headers)
    assert (streamed.status_code, streamed.json()["code"]) == (413, "too_large")
    together, _ = asking(max_held_bytes=1_000)
    crowded = together.post("/v1/emotion", json={"text": "a" * 2_000})
    assert (crowded.status_code, crowded.json()["code"]) == (503, "memory")
    assert together.post("/v1/emotion", json={"text": "a"}).status_code == 200, "what was held is let go"
    assert not fake.calls


def test_a_deadline_is_whole_milliseconds() -> None:
    client, fake = asking(max_timeout_s=60)
    for value in ("0", "-1", "1.5", "60001", "1e3", "٣", "9" * 400, ""):
        answer = client.post("/v1/emotion", json={"text": "a"}, headers={"X-Timeout-Ms": value.encode()})
        assert (answer.status_code, answer.json()["code"]) == (422, "timeout"), value
    assert not fake.calls
    assert client.post("/v1/emotion", json={"text": "a"}, headers={"X-Timeout-Ms": "60000"}).status_code == 200


def in_process(gateway: Gateway) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(gateway.asgi), base_url="http://gateway")


class Held(AsyncFakeTransport):
    """Answers inference when told to."""

    def __init__(self) -> None:
        super().__init__(FakeTransport())
        self.go = asyncio.Event()
        self.asked = 0

    async def call(self, operation: Any, timeout_s: float) -> Any:
        if isinstance(operation, Infer):
            self.asked += 1
            await self.go.wait()
        return await super().call(operation, timeout_s)


async def until_asked(held: Held, count: int) -> None:
    while held.asked < count:
        await asyncio.sleep(0)


def test_so_many_at_once_and_draining_lets_those_finish() -> None:
    async def story() -> None:
        held = Held()
        gateway = Gateway(GatewayOptions(most_in_flight=2), held)
        async with in_process(gateway) as client:
            first = [asyncio.create_task(client.post("/v1/emotion", json={"text": "a"})) for _ in range(2)]
            await until_asked(held, 2)
            third = await client.post("/v1/emotion", json={"text": "a"})
            assert (third.status_code, third.json()["code"]) == (503, "queue")
            assert gateway.door.in_flight == 2
            assert (await client.get("/readyz")).status_code == 200
            gateway.drain()
            late = await client.post("/v1/emotion", json={"text": "a"})
            assert (late.status_code, late.json()["code"]) == (503, "draining")
            assert (await client.get("/readyz")).json() == {"status": "draining"}
            assert (await client.get("/livez")).status_code == 200
            held.go.set()
            assert [(await each).status_code for each in first] == [200, 200]
            assert [each.result().headers["connection"] for each in first] == ["close", "close"]
            assert third.headers.get("connection") is None
            assert gateway.door.in_flight == 0
            counted = (await client.get("/metrics")).text
        assert 'cmt_gateway_refusals_total{code="queue"} 1.0' in counted
        assert 'cmt_gateway_requests_total{route="/v1/emotion",status="200"} 2.0' in counted
        assert "cmt_gateway_in_flight 0.0" in counted
        assert "cmt_gateway_held_bytes 0.0" in counted

    asyncio.run(story())


def test_a_body_that_drips_is_given_up() -> None:
    async def story() -> None:
        gateway = Gateway(GatewayOptions(body_timeout_s=0.05), AsyncFakeTransport())

        async def drips() -> AsyncIterator[bytes]:
            while True:
                yield b" "
                await asyncio.sleep(0.01)

        async with in_process(gateway) as client:
            answer = await client.post("/v1/emotion", content=drips(), headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()["code"]) == (408, "slow")
        assert gateway.door.in_flight == 0

    asyncio.run(story())


def test_ready_is_whether_triton_is() -> None:
    client, fake = asking()
    assert client.get("/readyz").json() == {"status": "ready", "release": 1, "digest": "f" * 64}
    fake.answer(ModelReady, lambda _: False)
    assert client.get("/readyz").status_code == 503
    fake.fail(ConnectionError("gone"))
    assert client.get("/readyz").json() == {"status": "triton can't be reached"}


def test_logs_audit_and_metrics_hold_no_content(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys, audit = tmp_path / "keys", tmp_path / "audit.jsonl"
    key = new_key(keys, "shop")
    client, fake = asking(keys=keys, audit=audit)
    headers = {"X-API-Key": key, "X-Request-ID": "r1"}
    with caplog.at_level(logging.DEBUG):
        client.post(f"/v1/emotion?{SECRET}=1", json={"text": SECRET}, headers=headers)
        client.post("/v1/emotion", json={"text": 1, SECRET: SECRET}, headers=headers)
        client.post("/v1/emotion", files={"image": (SECRET, b"?")}, data={"text": SECRET}, headers=headers)
        client.post(f"/v1/{SECRET}", json={}, headers=headers)
        fake.fail(KeyError(SECRET))
        client.post("/v1/emotion", json={"text": SECRET}, headers=headers)
        counted = client.get("/metrics").text
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    assert len(lines) == 5
    own = [
        record.getMessage() + str(record.exc_text or "") for record in caplog.records if record.name.startswith("cmt_")
    ]
    assert own
    for told in (*own, audit.read_text(), counted):
        assert SECRET not in told
        assert key not in told
    first = {name: value for name, value in lines[0].items() if name != "time"}
    assert first == {
        "request_id": "r1",
        "caller": "shop",
        "route": "/v1/emotion",
        "status": 200,
        "context": "general",
        "modalities": ["text"],
        "release": 1,
        "digest": "f" * 64,
    }
    assert lines[1]["code"] in ("type", "unknown")
    assert stat.S_IMODE(audit.stat().st_mode) == 0o600


def test_pages_of_other_origins_are_told_what_they_may() -> None:
    client, _ = asking(origins=("https://shop.example",), rate="1/minute")
    asks = {"Origin": "https://shop.example", "Access-Control-Request-Method": "POST"}
    allowed = client.options("/v1/emotion", headers=asks)
    assert allowed.headers["access-control-allow-origin"] == "https://shop.example"
    other = client.options("/v1/emotion", headers={**asks, "Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers
    statuses = [client.post("/v1/emotion", json={"text": "a"}, headers=asks) for _ in range(2)]
    assert [each.status_code for each in statuses] == [200, 429]
    assert statuses[1].headers["access-control-allow-origin"] == "https://shop.example", (
        "refusals too, or pages can't read"
    )


def test_gateways_share_nothing() -> None:
    """Two in one process, on threads of their own."""
    clients = [asking() for _ in range(2)]

    def ask(number: int) -> None:
        for _ in range(5):
            assert clients[number][0].post("/v1/emotion", json={"text": "a"}).status_code == 200

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(fake.calls) for _, fake in clients] == [5, 5]
