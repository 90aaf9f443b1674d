"""Traffic: a process of its own that keeps asking a server, and writes down what became of every request.

Closed loops ask again as soon as they are answered, or a pause later; an open loop sends at random moments (Poisson)
whatever the server does, and its latency counts from the moment at which a request was meant to be sent. Requests are
seeded and cover all seven subsets of modalities. Nothing is retried, so that every failure shows.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal

import numpy as np

from cmt_client import EmotionError, Item
from cmt_client.canary import CanaryMode
from cmt_export.samples import generated_bytes
from cmt_perf.inputs import sized_item
from cmt_perf.load_clients import Asks, Kind, PeerFailed, client_of
from cmt_pipeline.modality import MODALITIES, SUBSETS, Modality, ordered

STOP_TIMEOUT_S = 90.0
#: Errors of requests that no server had taken on: too many at once, the door was closed, or nobody was there.
TURNED_AWAY = re.compile(r"^Overloaded|draining|Cannot connect|[Cc]onnection refused|failed to connect")

Loop = Literal["closed", "open"]


@dataclass(frozen=True)
class TrafficPlan:
    """Who asks what. closed_grpc, closed_http: closed loops; open_rate: requests a second of the open loop.

    open_protocols: what the open loop asks over, in turns; open_canary: whether its clients follow a canary. together:
    requests that a closed loop sends at once and waits for, pause_s: after them and before the next ones. kind: what
    the URLs lead to. items: different requests, audio_s: seconds of sound in each, full: whether all have all
    modalities, or each subset a turn; text_tokens, image_px: sizes of those of a benchmark, 0 for whatever comes.
    bad_share: of the requests, whose file nothing can decode.
    """

    grpc_url: str
    http_url: str
    closed_grpc: int = 2
    closed_http: int = 1
    open_rate: float = 5.0
    open_protocols: tuple[str, ...] = ("grpc", "http")
    open_canary: CanaryMode = "follow"
    full: bool = False
    items: int = 28
    audio_s: float = 0.9
    seed: int = 0
    retries: int = 0
    together: int = 1
    pause_s: float = 0.0
    kind: Kind = "emotion"
    text_tokens: int = 0
    image_px: int = 0
    bad_share: float = 0.0


@dataclass(frozen=True)
class Asked:
    """What became of one request. due_s, came_s: CLOCK_MONOTONIC; due: when it was meant to be sent."""

    loop: Loop
    protocol: str
    item: int
    due_s: float
    came_s: float
    release: int = 0
    probabilities: tuple[float, ...] = ()
    error: str = ""
    bad: bool = False  # meant to be refused

    @property
    def latency_ms(self) -> float:
        return (self.came_s - self.due_s) * 1e3

    @property
    def turned_away(self) -> bool:
        """Never taken on, so that asking again does no harm, which clients do by themselves."""
        return bool(TURNED_AWAY.search(self.error))


@dataclass(frozen=True)
class Outcome:
    """Everything that was asked. sent: how many requests were, whether anything came back or not."""

    asked: tuple[Asked, ...]
    sent: int

    @property
    def lost(self) -> int:
        """Requests that got neither an answer nor an error."""
        return self.sent - len(self.asked)


class Traffic:
    """The process, as a context manager; it asks from entering until `stop`."""

    def __init__(self, plan: TrafficPlan, log: Path) -> None:
        self.plan, self.log = plan, log
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Traffic:
        self.log.unlink(missing_ok=True)
        command = [sys.executable, "-m", "cmt_perf.traffic", str(self.log), json.dumps(asdict(self.plan))]
        self._process = subprocess.Popen(command)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> Outcome:
        """No new requests; waits for those in flight. Everything that was asked, in the order of the answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(STOP_TIMEOUT_S)
        sent = int(self.log.with_suffix(".sent").read_text())
        return Outcome(tuple(self.so_far()), sent)

    def so_far(self) -> list[Asked]:
        """What is written down by now."""
        return list(_read(self.log)) if self.log.exists() else []

    def wait_for(self, answers: int, timeout_s: float = 120.0) -> None:
        """Until so many requests have been answered or have failed. TimeoutError, or ServerError of the process."""
        deadline = time.monotonic() + timeout_s
        while sum(1 for _ in _lines(self.log)) < answers:
            if self._process is None or self._process.poll() is not None:
                raise RuntimeError("the traffic ended by itself; what it printed says why")
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {answers} answers within {timeout_s:g} s")
            time.sleep(0.1)


def traffic_items(plan: TrafficPlan) -> list[Item]:
    """The requests, every subset in turn; the same for the same plan."""
    rng = np.random.default_rng(plan.seed)
    made = []
    for index in range(plan.items):
        if plan.text_tokens:
            made.append(sized_item(rng, plan.audio_s, plan.text_tokens, plan.image_px))
            continue
        modalities = MODALITIES if plan.full else SUBSETS[index % len(SUBSETS)]
        files = {m: generated_bytes(m, rng, plan.audio_s) for m in modalities}
        made.append(_item(files))
    return made


def _item(files: dict[Modality, bytes]) -> Item:
    item: Item = {}
    for modality in ordered(files):
        item[modality] = files[modality].decode() if modality == "text" else files[modality]
    return item


def _read(log: Path) -> Iterator[Asked]:
    for line in _lines(log):
        values = json.loads(line)
        yield Asked(**{**values, "probabilities": tuple(values["probabilities"])})


def _lines(log: Path) -> Iterator[str]:
    """Whole lines; the last may still be being written."""
    if log.exists():
        yield from (line for line in log.read_text().splitlines(keepends=True) if line.endswith("\n"))


class _Asker:
    """The traffic itself, in its own process."""

    def __init__(self, plan: TrafficPlan, log: IO[str]) -> None:
        self.plan, self.log = plan, log
        self.items = traffic_items(plan)
        self.stopped = asyncio.Event()
        self.rng = np.random.default_rng(plan.seed + 1)
        self.choices = np.random.default_rng(plan.seed + 2)
        self.sent = 0

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stopped.set)
        async with contextlib.AsyncExitStack() as stack:
            closed = {"grpc": self.plan.closed_grpc, "http": self.plan.closed_http}
            plain = await self._clients(stack, "off", {name for name, count in closed.items() if count})
            asked = set(self.plan.open_protocols) if self.plan.open_rate > 0 else set()
            following = await self._clients(stack, self.plan.open_canary, asked)
            loops = [self._closed(name, plain[name]) for name, count in closed.items() for _ in range(count)]
            await asyncio.gather(*loops, self._open(following))

    async def _clients(
        self, stack: contextlib.AsyncExitStack, canary: CanaryMode, protocols: set[str]
    ) -> dict[str, Asks]:
        """Of the protocols that are asked over: a machine may have the packages of one alone."""
        urls = {"grpc": self.plan.grpc_url, "http": self.plan.http_url}
        return {
            name: await stack.enter_async_context(client_of(self.plan.kind, url, self.plan.retries, canary))
            for name, url in urls.items()
            if name in protocols
        }

    async def _closed(self, protocol: str, client: Asks) -> None:
        while not self.stopped.is_set():
            due = time.monotonic()
            await asyncio.gather(*(self._ask("closed", protocol, client, due) for _ in range(self.plan.together)))
            await self._pause(self.plan.pause_s)

    async def _open(self, clients: dict[str, Asks]) -> None:
        if self.plan.open_rate <= 0:
            return
        sent: set[asyncio.Task[None]] = set()
        due = time.monotonic()
        for protocol in itertools.cycle(self.plan.open_protocols):
            due += float(self.rng.exponential(1 / self.plan.open_rate))
            await self._pause(due - time.monotonic())
            if self.stopped.is_set():
                break
            task = asyncio.create_task(self._ask("open", protocol, clients[protocol], due))
            sent.add(task)
            task.add_done_callback(sent.discard)
        await asyncio.gather(*sent)

    async def _pause(self, seconds: float) -> None:
        """Or until it is stopped."""
        if seconds > 0:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.stopped.wait(), seconds)

    async def _ask(self, loop: Loop, protocol: str, client: Asks, due: float) -> None:
        index = self.sent % len(self.items)
        self.sent += 1
        answer: dict[str, Any] = {"bad": bool(self.choices.random() < self.plan.bad_share)}
        item: Item = {"audio": b"no sound"} if answer["bad"] else self.items[index]
        try:
            release, probabilities = await client.ask(item)
            answer |= {"release": release, "probabilities": probabilities}
        except (EmotionError, PeerFailed) as error:
            answer |= {"error": f"{type(error).__name__}: {error}"[:300]}
            await asyncio.sleep(0.05)  # a server that is down is asked no faster than this
        asked = Asked(loop, protocol, index, due, time.monotonic(), **answer)
        self.log.write(json.dumps(asdict(asked)) + "\n")


if __name__ == "__main__":
    path = Path(sys.argv[1])
    with path.open("a", buffering=1) as file:
        asker = _Asker(TrafficPlan(**json.loads(sys.argv[2])), file)
        asyncio.run(asker.run())
    path.with_suffix(".sent").write_text(str(asker.sent))
