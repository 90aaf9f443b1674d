"""The live page in a real browser, whose camera and microphone play a generated face and voice."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from browsers import CHROMIUM, contrast, needs_chromium, until
from cmt_server.server import TritonServer
from gateways import fake_gateway, running

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, WebSocket

SAMPLES = Path(__file__).parents[2] / "cmt/cmt_cli/samples"
FLAGS = (
    "--no-sandbox",
    "--use-fake-device-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
)
WIDTH, HEIGHT = 320, 240
pytestmark = [
    needs_chromium,
    pytest.mark.xdist_group("browser"),
]


@pytest.fixture(scope="module")
def playing(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A face as a camera's film, and a voice that says its sentence twice."""
    folder = tmp_path_factory.mktemp("playing")
    face = Image.open(SAMPLES / "face.jpg").convert("RGB").resize((WIDTH, HEIGHT))
    with (folder / "face.y4m").open("wb") as out:
        out.write(f"YUV4MPEG2 W{WIDTH} H{HEIGHT} F10:1 Ip A1:1 C420mpeg2\n".encode())
        for brighter in range(10):
            shown = np.clip(np.asarray(face, np.int16) + brighter, 0, 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(shown, format="rgb24").reformat(format="yuv420p")
            out.write(b"FRAME\n" + frame.to_ndarray().tobytes())
    voice, rate_hz = soundfile.read(SAMPLES / "speech.wav", dtype="int16")
    pause = np.zeros(rate_hz, np.int16)
    soundfile.write(folder / "talk.wav", np.concatenate([pause, voice, pause, voice, pause]), rate_hz)
    return {"video": folder / "face.y4m", "audio": folder / "talk.wav"}


@pytest.fixture(scope="module")
def launched() -> Iterator[Callable[..., Browser]]:
    """Flags -> a browser."""
    sync = pytest.importorskip("playwright.sync_api")
    with sync.sync_playwright() as driver:
        yield lambda *flags: driver.chromium.launch(executable_path=CHROMIUM, headless=True, args=[*FLAGS, *flags])


@pytest.fixture(scope="module")
def browser(launched: Callable[..., Browser], playing: dict[str, Path]) -> Iterator[Browser]:
    found = launched(
        "--use-fake-ui-for-media-stream",
        *(f"--use-file-for-fake-{kind}-capture={path}" for kind, path in playing.items()),
    )
    yield found
    found.close()


def says(page: Page, selector: str, text: str, timeout_s: float = 60.0) -> None:
    """Waits until an element does."""
    from playwright.sync_api import expect

    expect(page.locator(selector)).to_contain_text(text, timeout=1000 * timeout_s)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with fake_gateway() as (found, _):
        yield found


@contextmanager
def opened(browser: Browser, url: str, script: str = "", **context: object) -> Iterator[Page]:
    """The page, on which nothing may fail. script: what runs in it before its own."""
    with browser.new_context(**context) as made:  # type: ignore[arg-type]
        made.add_init_script(script)
        page = made.new_page()
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
        page.goto(url)
        page.wait_for_selector("#notice:not(:empty)")
        yield page
        assert not [fault for fault in faults if "WebSocket" not in fault], faults


def begin(page: Page) -> None:
    page.check("[name=consent]")
    page.get_by_role("button", name="Begin").click()
    page.wait_for_selector("#live:not([hidden])")


def test_a_session_with_face_and_voice(browser: Browser, url: str) -> None:
    with opened(browser, url, viewport={"width": 1200, "height": 1400}) as page:
        page.get_by_role("button", name="Begin").click()
        assert page.is_hidden("#live"), "not without consent"
        page.select_option("select", "customer_service")
        begin(page)
        page.wait_for_selector("#turns tr:nth-child(2)", timeout=60_000)
        assert "The camera is on. The microphone is on." in page.inner_text("#devices")
        spoken = [row.inner_text() for row in page.query_selector_all("#turns tr")]
        assert all("image, audio" in row for row in spoken)
        assert page.eval_on_selector("#video", "video => video.videoWidth") > 0
        says(page, "#state", "joy")
        assert page.inner_text("#decision")
        assert len(page.query_selector_all("#legend li")) == 7
        painted = "canvas => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some(v => v)"
        assert page.eval_on_selector("#chart", painted)
        page.get_by_role("button", name="Stop").click()
        page.wait_for_selector("#start:not([hidden])")
        assert page.inner_text("#connection") == "Ended."
        assert page.eval_on_selector("#video", "video => video.srcObject") is None, "the camera is off"


SLOW_PICTURES = """
const toBlob = HTMLCanvasElement.prototype.toBlob;
HTMLCanvasElement.prototype.toBlob = function (done, ...rest) {
  window.encoding = true;
  setTimeout(() => toBlob.call(this, (blob) => (done(blob), (window.encoding = false)), ...rest), 2000);
};"""
SLOW_DEVICES = """
window.granted = [];
const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
navigator.mediaDevices.getUserMedia = async (...asked) => {
  await new Promise((resolve) => setTimeout(resolve, 700));
  const stream = await ask(...asked);
  window.granted.push(...stream.getTracks());
  return stream;
};"""


@pytest.mark.long
def test_a_picture_still_encoded_at_the_end_is_dropped(browser: Browser, url: str) -> None:
    with opened(browser, url, SLOW_PICTURES) as page:
        begin(page)
        until(page, "window.encoding === true")
        page.get_by_role("button", name="Stop").click()
        says(page, "#connection", "Ended.")
        until(page, "window.encoding === false")
        page.wait_for_timeout(100)  # what it gave is read


@pytest.mark.long
def test_a_device_granted_after_the_end_is_let_go(browser: Browser, url: str) -> None:
    with opened(browser, url, SLOW_DEVICES) as page:
        begin(page)
        page.get_by_role("button", name="Stop").click()
        says(page, "#connection", "Ended.")
        until(page, "granted.length > 0 && granted.every((track) => track.readyState === 'ended')")
        page.wait_for_timeout(1500)  # the microphone would be asked for next
        assert page.evaluate("granted.every((track) => track.readyState === 'ended')")
        assert page.eval_on_selector("#video", "video => video.srcObject") is None
        assert page.inner_text("#devices") == ""


@pytest.mark.long
def test_stop_ends_a_session_that_waits_to_connect_again(browser: Browser) -> None:
    with fake_gateway() as (url, first), opened(browser, url) as page:
        begin(page)
        says(page, "#devices", "The camera is on.")
        first.kill()
        says(page, "#connection", "again in 5000 ms")
        with fake_gateway(int(url.rsplit(":", 1)[1])):
            page.get_by_role("button", name="Stop").click()
            assert page.inner_text("#connection") == "Ended."
            assert page.eval_on_selector("#video", "video => video.srcObject") is None
            page.wait_for_timeout(5000)
            assert page.inner_text("#connection") == "Ended."


@pytest.mark.long
def test_words_alone_by_keyboard_where_every_device_is_denied(launched: Callable[..., Browser], url: str) -> None:
    with closing(launched("--deny-permission-prompts")) as denying, opened(denying, url) as page:
        page.focus("[name=consent]")
        page.keyboard.press("Space")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.wait_for_selector("#live:not([hidden])")
        says(page, "#devices", "No microphone")
        assert "No camera" in page.inner_text("#devices")
        page.focus("#text")
        page.keyboard.type("I have waited for an hour!")
        page.keyboard.press("Enter")
        page.wait_for_selector("#turns tr")
        assert "text" in page.inner_text("#turns")


@pytest.mark.long
def test_a_recording_is_played_to_its_end(browser: Browser, url: str, playing: dict[str, Path]) -> None:
    with opened(browser, url) as page:
        page.set_input_files("[name=file]", playing["audio"])
        begin(page)
        says(page, "#connection", "Ended.")
        rows = [row.inner_text() for row in page.query_selector_all("#turns tr")]
        assert rows
        assert all("audio" in row and "image" not in row for row in rows)


@pytest.mark.long
def test_a_recording_that_cannot_be_read_is_said(browser: Browser, url: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF" + bytes(1000))
    with opened(browser, url) as page:
        sockets: list[WebSocket] = []
        page.on("websocket", lambda socket: sockets.append(socket))
        page.set_input_files("[name=file]", broken)
        page.check("[name=consent]")
        page.get_by_role("button", name="Begin").click()
        says(page, "#connection", "Couldn't begin")
        page.wait_for_selector("#start:not([hidden])")
        page.wait_for_timeout(1000)
        assert [socket.is_closed() for socket in sockets] == [True]
        assert "Couldn't begin" in page.inner_text("#connection")


@pytest.mark.long
def test_a_session_goes_on_when_its_replica_dies(browser: Browser) -> None:
    with fake_gateway() as (url, first), opened(browser, url) as page:
        for name in ("camera", "microphone"):
            page.uncheck(f"[name={name}]")
        begin(page)
        page.fill("#text", "hello")
        page.press("#text", "Enter")
        page.wait_for_selector("#turns tr")
        first.kill()
        says(page, "#connection", "again in")
        with fake_gateway(int(url.rsplit(":", 1)[1])):
            says(page, "#connection", "it goes on")
            page.fill("#text", "still here")
            page.press("#text", "Enter")
            page.wait_for_selector("#turns tr:nth-child(2)")
            ends = [float(row.split("\t")[1].split()[0]) for row in page.inner_text("#turns").split("\n")]
            assert ends == sorted(ends, reverse=True), "on the session's own clock"


@pytest.mark.long
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_reads_in_any_light(browser: Browser, url: str, scheme: str) -> None:
    with opened(browser, url, viewport={"width": 390, "height": 800}, color_scheme=scheme) as page:
        page.uncheck("[name=camera]")
        page.uncheck("[name=microphone]")
        begin(page)
        page.fill("#text", "hello")
        page.press("#text", "Enter")
        page.wait_for_selector("#turns tr")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        for selector in ("#state", ".quiet", "#connection", "button", ".within, .over"):
            assert contrast(page, selector) >= 4.5, f"{selector}: WCAG 2.1, 1.4.3"


@pytest.mark.long
def test_nothing_is_fetched_from_elsewhere(browser: Browser, url: str) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        answer = page.goto(url)
        assert answer is not None
        page.wait_for_selector("#notice:not(:empty)")
        assert all(each.startswith(url) for each in asked if not each.startswith("data:"))
        assert "default-src 'self'" in answer.headers["content-security-policy"]


@pytest.mark.long
def test_from_the_browser_to_triton_and_back(browser: Browser, server: TritonServer) -> None:
    with running("--triton", server.grpc_url, "--timeout-s", "30") as (url, process), opened(browser, url) as page:
        begin(page)
        page.wait_for_selector("#turns tr:nth-child(2)", timeout=60_000)
        assert "image, audio" in page.inner_text("#turns")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, "a live session doesn't hold up the stop"
