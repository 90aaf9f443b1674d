"""The status page in a real browser, before gateways that are asked, refuse, are away and have no Triton."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest

from browsers import CHROMIUM, contrast, needs_chromium, until
from cmt_gateway.metrics import BUCKETS_S, Metrics
from gateways import ask_of_all_kinds, fake_gateway, running

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [needs_chromium, pytest.mark.xdist_group("browser")]
#: Polls come ten times as often.
SOON = "const later = window.setTimeout; window.setTimeout = (run, ms) => later(run, ms / 10);"
NOBODY = "grpc://127.0.0.1:9"  # the discard port: nobody listens


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    sync = pytest.importorskip("playwright.sync_api")
    with sync.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, headless=True, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with fake_gateway() as (found, _):
        yield found


@contextmanager
def opened(browser: Browser, url: str, **context: Any) -> Iterator[Page]:
    """The page, in which nothing of its own may fail."""
    with browser.new_context(**context) as made:
        made.add_init_script(SOON)
        page = made.new_page()
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(f"{url}/status")
        until(page, "document.getElementById('health').textContent !== 'Asking …'")
        yield page
        assert not faults


def text_of(page: Page, selector: str) -> str:
    return page.inner_text(selector)


def until_says(page: Page, selector: str, text: str) -> None:
    until(page, f"document.querySelector({selector!r}).textContent.includes({text!r})")


@pytest.mark.long
def test_what_is_asked_refused_and_how_long_it_took(browser: Browser, url: str) -> None:
    with opened(browser, url) as page:
        assert text_of(page, "#health") == "Ready."
        assert text_of(page, "#release") == "1 (ffffffff)"
        until_says(page, "#answered + ul", "requests: 0")
        ask_of_all_kinds(url)
        until_says(page, "#refused + ul", "refused, base64: 0.")
        for selector in ("#turns + ul", "#requests + ul"):
            until_says(page, selector, " ms95 % within: ")
        assert "failed" not in text_of(page, "#refused + ul"), "nothing did"
        until_says(page, "#budget", "It is")
        painted = "canvas => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some(v => v)"
        for canvas in ("#answered", "#refused", "#turns", "#requests"):
            assert page.eval_on_selector(canvas, painted)


@pytest.mark.long
def test_it_is_paused_and_goes_on_by_keyboard(browser: Browser, url: str) -> None:
    with opened(browser, url) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "pause"
        page.keyboard.press("Space")
        page.wait_for_timeout(500)  # what was being asked is answered
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.wait_for_timeout(1000)
        assert asked == []
        page.keyboard.press("Enter")
        with page.expect_request(f"{url}/metrics"):
            pass


@pytest.mark.long
def test_a_gateway_that_goes_and_another_that_comes(browser: Browser) -> None:
    with fake_gateway() as (url, first), opened(browser, url) as page:
        httpx.post(f"{url}/v1/emotion", json={"image": "?"})
        until_says(page, "#refused + ul", "refused, base64")
        first.kill()
        until_says(page, "#health", "can't be reached. The figures are of")
        with fake_gateway(int(url.rsplit(":", 1)[1])):
            until_says(page, "#health", "Ready.")
            until_says(page, "#refused + ul", "none yet")  # it counts from 0, and nothing is below it


@pytest.mark.long
def test_a_triton_that_is_away(browser: Browser) -> None:
    with running("--triton", NOBODY, "--timeout-s", "1") as (url, _), opened(browser, url) as page:
        assert text_of(page, "#health") == "Not ready: triton can't be reached."
        assert text_of(page, "#release") == "–"
        assert httpx.post(f"{url}/v1/emotion", json={"text": "a"}, timeout=30).status_code in (503, 504)
        until(
            page, "/(failed, unavailable|refused, deadline)/.test(document.querySelector('#refused + ul').textContent)"
        )


@pytest.mark.long
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_reads_in_any_light(browser: Browser, url: str, scheme: str) -> None:
    with opened(browser, url, viewport={"width": 360, "height": 800}, color_scheme=scheme) as page:
        until_says(page, "#answered + ul", "requests")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        for selector in ("#health", "#triton", ".tiles dt", ".legend li", ".quiet", "a", "button"):
            assert contrast(page, selector) >= 4.5, f"{selector}: WCAG 2.1, 1.4.3"
        unnamed = "canvas => !canvas.getAttribute('aria-label')"
        assert not page.eval_on_selector_all("canvas", f"all => all.some({unnamed})")


def test_nothing_is_fetched_from_elsewhere(browser: Browser, url: str) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        answer = page.goto(f"{url}/status")
        assert answer is not None
        until(page, "document.getElementById('health').textContent !== 'Asking …'")
        assert all(each.startswith(url) for each in asked if not each.startswith("data:"))
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"


FIGURES = """async ([window_s, texts]) => {
  const { Readings } = await import("/figures.js");
  const readings = new Readings(window_s);
  const goesOn = texts.map(([time, text]) => readings.add(text, time));
  const turns = (share) => readings.quantile(share, "cmt_gateway_turn_seconds");
  return {
    goesOn, half: turns(0.5), most: turns(0.95), all: turns(1),
    requests: readings.rate("cmt_gateway_requests_total", ({ status }) => status === "200"),
    refused: Object.fromEntries(readings.rates("cmt_gateway_refusals_total", "code")),
  };
}"""


def as_prometheus(share: float, seconds: np.ndarray) -> float:
    """histogram_quantile of what was observed, from its counts in the buckets."""
    bounds = np.array([0.0, *BUCKETS_S])
    counts = np.array([0, *((seconds <= bound).sum() for bound in BUCKETS_S)])
    if counts[-1] < share * len(seconds):
        return float(bounds[-1])
    return float(np.interp(share * len(seconds), counts, bounds))


@pytest.mark.long
def test_rates_and_quantiles_are_those_that_prometheus_would_reckon(browser: Browser, url: str) -> None:
    metrics, seconds = Metrics(), np.random.default_rng(0).lognormal(-2.3, 0.5, 400)
    metrics.turn_seconds.observe(9.0)
    texts = [(0, metrics.text().decode())]
    for step, some in enumerate(np.split(seconds, 4)):
        for each in some:
            metrics.turn_seconds.observe(each)
            metrics.requests.labels("/v1/emotion", "200").inc()
        metrics.requests.labels("/v1/emotion", "503").inc(7)
        metrics.not_answered("queue")
        texts.append((10 * (step + 1), metrics.text().decode()))
    with opened(browser, url) as page:
        whole = page.evaluate(FIGURES, [1000, texts])
        late = page.evaluate(FIGURES, [20, texts])
        other = page.evaluate(FIGURES, [20, [*texts, (50, Metrics().text().decode())]])
    assert whole["goesOn"] == [False, True, True, True, True]
    assert (whole["requests"], whole["refused"]) == (10.0, {"queue": 0.1})
    for name, share in (("half", 0.5), ("most", 0.95)):
        assert whole[name] == pytest.approx(as_prometheus(share, seconds))
        assert late[name] == pytest.approx(as_prometheus(share, seconds[200:])), "of the window alone"
    assert other["goesOn"][-1] is False, "another process counts anew"
    assert (other["half"], other["requests"]) == (None, 0)
