"""`make bench-live`: the gateway, from the browser to Triton and back, and at twice what it can answer.

    python -m cmt_perf.live_trial STATE

A real Chromium, whose camera and microphone play the sample's face and voice, holds a session on the live page. A
turn's time runs from where the page sends the piece of sound that ended it to where the page gets its answer, by the
page's own clock; the silence that ends a turn, 0.4 s, isn't in it. Afterwards the same turns are sent whole by HTTP,
one at a time. The storm is HTTP requests of a face, a voice and words, in an open loop; saturation is measured before
and after it, since shared machines change.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import itertools
import json
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import wave
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from cmt_perf.conditions import conditions, to_text
from cmt_perf.upgrade_rig import rig_on
from cmt_release.release import newest_release

RESULT = Path("perf/results/live.json")
RATE_HZ = 16_000
HEAD = struct.Struct(">BI")  # of a binary message: kind, milliseconds
IMAGE, PCM = 1, 2
TURNS = 60
PAUSE_S, EARLY_S, PAD_S = 0.4, 0.16, 0.1  # of cmt_gateway.live.turns
OVERLOAD = 2.0
STORM_S, CLOSED_S, LOOPS = 20.0, 8.0, (4, 8, 12)


#: Runs in the page before its own.
CLOCK = """
window.sentAt = [];
window.heardAt = [];
window.WebSocket = class extends WebSocket {
  constructor(...asked) {
    super(...asked);
    this.addEventListener("message", () => heardAt.push(performance.now()));
  }
  send(data) {
    sentAt.push(performance.now());
    super.send(data);
  }
};"""


@dataclass
class Heard:
    """What went over one page's socket: pieces sent, as (number, time of the media in s, bytes), and turns answered,
    as (number, message). sent_at, heard_at: milliseconds of the page's clock, by number."""

    pcm: list[tuple[int, float, bytes]] = field(default_factory=list)
    images: list[tuple[int, float, bytes]] = field(default_factory=list)
    turns: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    sent_at: list[float] = field(default_factory=list)
    heard_at: list[float] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _heard_numbers: Iterator[int] = field(default_factory=itertools.count)

    def sent(self, payload: str | bytes) -> None:
        number = next(self._numbers)
        if isinstance(payload, bytes):
            kind, time_ms = HEAD.unpack_from(payload)
            into = self.images if kind == IMAGE else self.pcm
            into.append((number, time_ms / 1000, payload[HEAD.size :]))

    def received(self, payload: str | bytes) -> None:
        number, message = next(self._heard_numbers), json.loads(payload)
        if message["type"] == "turn.result" and message["ended"] == "silence":
            self.turns.append((number, message))

    def latency_ms(self, turn: tuple[int, dict[str, Any]]) -> float:
        """From the piece that ended it."""
        came, message = turn
        over_s = message["end_s"] - PAD_S + PAUSE_S
        ending = next(number for number, begin_s, data in self.pcm if begin_s + len(data) / 2 / RATE_HZ >= over_s)
        return self.heard_at[came] - self.sent_at[ending]

    def request(self, message: Mapping[str, Any]) -> dict[str, tuple[str, bytes]]:
        """The same turn, whole, as a form."""
        begin_s = self.pcm[0][1]
        pcm = b"".join(data for _, _, data in self.pcm)
        first, last = (2 * round((message[at] - begin_s) * RATE_HZ) for at in ("start_s", "end_s"))
        middle = (message["start_s"] + message["end_s"]) / 2
        image = min(self.images, key=lambda frame: abs(frame[1] - middle))[2]
        return {"audio": ("turn.wav", _wav(pcm[max(0, first) : last])), "image": ("frame.jpg", image)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("state", type=Path)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--seconds", type=float, default=STORM_S, help="of the storm")
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    release = newest_release(given.state / "releases", given.precision)
    with (
        tempfile.TemporaryDirectory() as draft,
        rig_on(release, Path(draft), state=given.state) as rig,
        gateway(rig.server.grpc_url) as url,
    ):
        result = {"conditions": conditions(release), **trial(url, Path(draft), given.turns, given.seconds)}
    given.out.write_text(to_text(result))
    print(to_text({name: value for name, value in result.items() if name != "conditions"}))


def trial(url: str, folder: Path, turns: int, seconds: float) -> dict[str, Any]:
    """folder: for what the camera and the microphone play."""
    heard = live(url, folder, turns)
    times = [heard.latency_ms(turn) for turn in heard.turns]
    whole = [_asked_whole(url, heard.request(message)) for _, message in heard.turns]
    return {
        "turns": {
            "count": len(times),
            "mean_length_s": round(float(np.mean([m["end_s"] - m["start_s"] for _, m in heard.turns])), 2),
            "live_ms": summary(times),
            "gateway_ms": summary([message["latency_ms"] for _, message in heard.turns]),
            "whole_ms": summary(whole),
        },
        "storm": asyncio.run(storm(url, seconds)),
    }


@contextlib.contextmanager
def gateway(triton: str) -> Iterator[str]:
    """`cmt gateway` on a free port; its URL."""
    command = [sys.executable, "-m", "cmt_cli.main", "gateway", "--triton", triton, "--port", "0"]
    command += ["--rate", "1000000/second"]
    with tempfile.NamedTemporaryFile("w") as log:  # a pipe that nobody reads would stop it
        process = subprocess.Popen(command, stderr=log)
        try:
            while (found := re.search(r"gateway (http://\S+) before", Path(log.name).read_text())) is None:
                if process.poll() is not None:
                    raise RuntimeError(f"no gateway: {Path(log.name).read_text()[-500:]}")
                time.sleep(0.1)
            yield found[1]
        finally:
            process.terminate()
            process.wait()


def live(url: str, folder: Path, turns: int) -> Heard:
    """A session on the page, until so many turns of it ended by silence."""
    from playwright.sync_api import sync_playwright

    heard = Heard()
    playing = _playing(folder)
    flags = [f"--use-file-for-fake-{kind}-capture={path}" for kind, path in playing.items()]
    flags += ["--no-sandbox", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), headless=True, args=flags)
        page = browser.new_page()
        page.add_init_script(CLOCK)

        def follow(socket: Any) -> None:
            socket.on("framesent", heard.sent)
            socket.on("framereceived", heard.received)

        page.on("websocket", follow)
        page.goto(url)
        page.check("[name=consent]")
        page.get_by_role("button", name="Begin").click()
        while len(heard.turns) < turns:
            page.wait_for_timeout(200)
            print(f"\r{len(heard.turns)} of {turns} turns", end="", file=sys.stderr)
        heard.sent_at, heard.heard_at = page.evaluate("[sentAt, heardAt]")
        browser.close()
    print(file=sys.stderr)
    return heard


def _playing(folder: Path) -> dict[str, Path]:
    """The sample's face as a film, and its voice with pauses that end turns."""
    import av
    import soundfile
    from PIL import Image

    samples = files("cmt_cli") / "samples"
    face = Image.open(io.BytesIO((samples / "face.jpg").read_bytes())).convert("RGB").resize((320, 240))
    film = folder / "face.y4m"
    with film.open("wb") as out:
        out.write(b"YUV4MPEG2 W320 H240 F10:1 Ip A1:1 C420mpeg2\n")
        for _ in range(10):
            frame = av.VideoFrame.from_ndarray(np.asarray(face), format="rgb24").reformat(format="yuv420p")
            out.write(b"FRAME\n" + frame.to_ndarray().tobytes())
    voice, rate_hz = soundfile.read(io.BytesIO((samples / "speech.wav").read_bytes()), dtype="int16")
    sound = folder / "talk.wav"
    soundfile.write(sound, np.concatenate([np.zeros(rate_hz, np.int16), voice]), rate_hz)
    return {"video": film, "audio": sound}


def _wav(pcm: bytes) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 2, RATE_HZ, 0, "NONE", ""))
        out.writeframes(pcm)
    return file.getvalue()


def _asked_whole(url: str, form: Mapping[str, tuple[str, bytes]]) -> float:
    began = time.monotonic()
    httpx.post(f"{url}/v1/emotion", files=dict(form), timeout=60).raise_for_status()
    return 1000 * (time.monotonic() - began)


def summary(times: Sequence[float]) -> dict[str, float]:
    return {name: round(float(np.percentile(times, q)), 1) for name, q in (("p50", 50), ("p95", 95), ("p99", 99))}


class Asker:
    """Sends one form again and again, on connections that it keeps: bytes made beforehand, so that the generator takes
    little of the cores that the service runs on."""

    def __init__(self, url: str) -> None:
        samples = files("cmt_cli") / "samples"
        form = {
            "image": ("f.jpg", (samples / "face.jpg").read_bytes()),
            "audio": ("v.wav", (samples / "speech.wav").read_bytes()),
            "text": (None, (samples / "sentence.txt").read_bytes()),
        }
        request = httpx.Request("POST", f"{url}/v1/emotion", files=form)
        head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
        self._sent = f"POST {request.url.path} HTTP/1.1\r\n{head}\r\n".encode() + request.read()
        self._host, self._port = request.url.host, request.url.port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self) -> tuple[int, float]:
        """Status, 0 where the connection failed, and milliseconds."""
        began, status = time.monotonic(), 0
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection(self._host, self._port)
            writer.write(self._sent)
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            await reader.readexactly(int(re.findall(r"content-length: (\d+)", head)[0]))
            status = int(head.split()[1])
            self._idle.append((reader, writer))
        return status, 1000 * (time.monotonic() - began)

    def close(self) -> None:
        for _, writer in self._idle:
            writer.close()


async def storm(url: str, seconds: float) -> dict[str, Any]:
    """Saturation by closed loops, then OVERLOAD times as much in an open loop."""
    asker = Asker(url)

    async def closed(loops: int) -> float:
        end, answered = time.monotonic() + CLOSED_S, itertools.count()

        async def loop() -> None:
            while time.monotonic() < end:
                if (await asker.ask())[0] == 200:
                    next(answered)

        await asyncio.gather(*(loop() for _ in range(loops)))
        return next(answered) / CLOSED_S

    before = max([await closed(loops) for loops in LOOPS])
    rate, tasks = OVERLOAD * before, []
    began, spent_s = time.monotonic(), time.process_time()
    for number in range(round(rate * seconds)):
        await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
        tasks.append(asyncio.create_task(asker.ask()))
    found = await asyncio.gather(*tasks)
    took_s, spent_s = time.monotonic() - began, time.process_time() - spent_s
    after = max([await closed(loops) for loops in LOOPS])
    asker.close()
    answered = [ms for status, ms in found if status == 200]
    refused = [ms for status, ms in found if status == 503]
    return {
        "saturation_per_s": [round(before, 1), round(after, 1)],
        "offered_per_s": round(len(found) / seconds, 1),
        "goodput_per_s": round(len(answered) / took_s, 1),
        "answered_ms": summary(answered),
        "refused": round(len(refused) / len(found), 3),
        "refused_ms": summary(refused) if refused else {},
        "otherwise": len(found) - len(answered) - len(refused),
        "generator_cores": round(spent_s / took_s, 2),
    }


if __name__ == "__main__":
    main()
