"""The JavaScript client by itself, in a real browser, without the page that comes with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from browsers import CHROMIUM, needs_chromium, until
from cmt_gateway.keys import new_key
from gateways import fake_gateway, running

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [needs_chromium, pytest.mark.xdist_group("browser")]

#: A session of which every event is noted. Functions run in the page, since its policy forbids strings of code.
OPEN = """async (options) => {
  const { LiveSession } = await import("/cmt-live.js");
  window.session = new LiveSession(options);
  window.events = [];
  for (const type of ["session.created", "turn.result", "session.ended", "error", "reconnecting", "closed"]) {
    session.addEventListener(type, ({ detail }) => events.push([type, detail]));
  }
  try {
    return await session.open();
  } catch (error) {
    return error.message;
  }
}"""


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    sync = pytest.importorskip("playwright.sync_api")
    with sync.sync_playwright() as driver, fake_gateway() as (url, _):
        browser = driver.chromium.launch(executable_path=CHROMIUM, headless=True, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(f"{url}/status")  # any of the gateway's pages: the module is its own origin's
        yield page
        browser.close()


def opened(page: Page, **options: Any) -> Any:
    return page.evaluate(OPEN, options)


def heard(page: Page, kind: str) -> list[Any]:
    found: list[Any] = page.evaluate("(kind) => events.filter(([type]) => type === kind).map(([, said]) => said)", kind)
    return found


def ended(page: Page) -> None:
    page.evaluate("() => session.close()")
    until(page, "events.some(([type]) => type === 'closed')")


@pytest.mark.long
def test_words_are_answered_and_the_state_is_kept(page: Page) -> None:
    created = opened(page, policy="customer_service")
    assert created["type"] == "session.created"
    assert page.evaluate("() => session.connected")
    page.evaluate("() => session.sendText('I have waited for an hour!', session.now())")
    until(page, "events.some(([type]) => type === 'turn.result')")
    (turn,) = heard(page, "turn.result")
    assert (turn["answer"]["label"], turn["answer"]["modalities"]) == ("joy", ["text"])
    state = page.evaluate("() => session.state")
    assert state == turn["state"]
    ended(page)
    assert len(heard(page, "session.ended")) == 1
    assert not page.evaluate("() => session.connected")
    again = opened(page, policy="customer_service", state=state)
    assert again["resumed"]
    assert again["clock_s"] >= created["clock_s"]
    ended(page)


def test_pieces_of_arrays_are_sent_as_they_are(page: Page) -> None:
    """A view into a larger buffer too: a microphone's worklet gives those."""
    opened(page)
    sent = """() => {
      const socket = WebSocket.prototype.send, messages = [];
      WebSocket.prototype.send = function (data) { messages.push([...new Uint8Array(data.buffer ?? data)]); };
      session.sendPcm(new Int16Array([9, 1, -2, 9]).subarray(1, 3), 258);
      session.sendImage(new Uint8Array([255, 216]), -5);
      session.sendOpus(new Uint8Array([7]), 1e9);
      WebSocket.prototype.send = socket;
      return messages;
    }"""
    pcm, image, opus = page.evaluate(sent)
    assert pcm == [2, 0, 0, 1, 2, 1, 0, 254, 255]
    assert image == [1, 0, 0, 0, 0, 255, 216]
    assert opus == [3, *(10**9).to_bytes(4, "big"), 7]
    ended(page)


def test_nothing_is_sent_or_thrown_without_a_connection(page: Page) -> None:
    opened(page)
    ended(page)
    assert page.evaluate("() => session.sendImage(new Uint8Array([1]), 0)") is False
    assert page.evaluate("() => session.skipped") == 1
    page.evaluate("() => (session.sendPcm(new Int16Array(1), 0), session.sendText('a', 0), session.endTurn())")
    page.evaluate("() => session.close()")


@pytest.mark.long
def test_what_is_refused_is_told(page: Page, tmp_path: Path) -> None:
    assert "policy" in opened(page, policy="poker")
    key = new_key(tmp_path / "keys", "shop")
    origin = page.evaluate("() => location.origin")
    with running("--triton", "grpc://127.0.0.1:1", "--keys", str(tmp_path / "keys"), "--origin", origin) as (url, _):
        live = url.replace("http", "ws") + "/v1/live"
        assert "wrong key" in opened(page, url=live, key="cmt_nobodys")
        assert opened(page, url=live, key=key)["type"] == "session.created"
        ended(page)
