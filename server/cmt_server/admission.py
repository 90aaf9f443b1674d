"""The gate before the fan-out: who is let in, by how long they would wait.

A request waits wherever something on its path is slower than what comes: in the pool that prepares it, at an encoder,
at `fuse`. The wait ahead of it is, at the worst of these places, the number of requests before it times the time that
one takes there (Little's law). Both are observed, none is configured: how many wait is read from the server and counted
here since, and the rate at which a place works is learned from what it finishes while it has a queue. So the same gate
fits a machine of any speed and any mix of modalities and lengths.

Pure logic: `cmt_server.queues` reads the server, `cmt_server.adapters` asks and answers.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from cmt_pipeline.errors import Overloaded

#: So many may wait at a place however slow it is: at 80 % of saturation random arrivals alone make as long a queue.
LEAST_AHEAD = 12
#: A place's rate is that over its last so many answers: enough to even batches out, few enough to follow a change.
RATE_WINDOW = 32
#: A gate that has let nobody in for so long tries one: nothing else would show that a place works again.
PROBE_S = 1.0
#: The least and most that a refusal asks its caller to stay away.
RETRY_AFTER_S = (0.1, 5.0)


@dataclass(frozen=True)
class Queue:
    """What a server says of a stage: requests that wait for it now, and those it has finished since it was loaded."""

    waiting: int
    finished: int


class Place:
    """Something that requests pass one after the other: how many are before a new one, and how fast they go."""

    def __init__(self) -> None:
        self.coming = 0  # let in, and still on their way here
        self.arrived = 0  # since the last reading
        self._waiting = 0  # at the last reading
        self._finished: int | None = None
        self._queued = (0.0, 0.0)  # finished, and in how many seconds, while there was a queue
        self._lately = (0.0, 0.0)  # the same with or without one
        self._least_rate = 0.0  # no place is slower than what it does

    @property
    def ahead(self) -> int:
        return self._waiting + self.arrived + self.coming

    @property
    def rate(self) -> float:
        """Requests a second while there is a queue; 0 where there was none yet."""
        finished, seconds = self._queued
        return finished / seconds if seconds else 0.0

    @property
    def wait_s(self) -> float:
        """How long a new request waits here, as far as that is known."""
        return self.ahead / self.rate if self.rate else 0.0

    def full(self, max_wait_s: float) -> bool:
        return self.ahead >= max(LEAST_AHEAD, max(self.rate, self._least_rate) * max_wait_s)

    def read(self, queue: Queue, seconds: float, accounted: int) -> None:
        """A reading, `seconds` after the last one; accounted: those that had arrived before it, which it shows."""
        if self._finished is not None and queue.finished >= self._finished:  # a stage loaded anew counts from zero
            self._learn(queue.finished - self._finished, seconds, self._waiting > 0 and queue.waiting > 0)
        self._finished = queue.finished
        self._waiting = queue.waiting
        self.arrived -= accounted

    def _learn(self, finished: int, seconds: float, queued: bool) -> None:
        if queued:
            self._queued = _windowed(self._queued[0] + finished, self._queued[1] + seconds)
        self._lately = (self._lately[0] + finished, self._lately[1] + seconds)
        if self._lately[0] >= LEAST_AHEAD:
            rate = self._lately[0] / self._lately[1]
            if self.rate:
                self._queued = self._lately if rate > self.rate else self._queued
            else:
                self._least_rate = max(self._least_rate, rate)
            self._lately = (0.0, 0.0)


class Gate:
    """Admission of one stage before the fan-out. own: that stage's name; others: the stages behind it.

    max_wait_s: how long a request may have to wait, as far as can be foretold. Any number of threads.
    """

    def __init__(
        self, own: str, others: Collection[str], max_wait_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._own = own
        self._places = {name: Place() for name in (own, *others)}
        self._max_wait_s = max_wait_s
        self._clock = clock
        self._lock = threading.Lock()
        self._let_in_s = clock()
        self._read_s: float | None = None
        self._left = 0
        self._blind = False

    def admit(self, stages: Collection[str], left_s: float | None = None) -> Overloaded | None:
        """Lets a request in, or says why not. stages: those it goes on to; left_s: how long its caller still waits.

        Whoever was let in is to be reported by `leave`, once.
        """
        with self._lock:
            now = self._clock()
            own, behind = self._places[self._own], [self._places[name] for name in stages]
            path = [own] if self._blind else [own, *behind]
            wait_s = max(place.wait_s for place in path)
            full = any(place.full(self._max_wait_s) for place in path) and now - self._let_in_s < PROBE_S
            if full or (left_s is not None and wait_s >= left_s):
                return self._refusal("queue" if full else "deadline", wait_s, left_s, max(p.ahead for p in path))
            self._let_in_s = now
            own.arrived += 1
            for place in behind:
                place.coming += 1
            return None

    def leave(self, stages: Collection[str], onwards: bool = True) -> None:
        """A request that was let in has left. onwards: to the stages behind; else it was refused after all."""
        with self._lock:
            self._left += 1
            self._places[self._own].arrived -= 1
            for name in stages:
                self._places[name].coming -= 1
                self._places[name].arrived += onwards

    def read(self, ask: Callable[[], Mapping[str, Queue]]) -> None:
        """Takes a reading of the server. Whatever `ask` raises passes through."""
        with self._lock:
            before = {name: place.arrived for name, place in self._places.items()}
        queues = ask()
        with self._lock:
            now = self._clock()
            seconds = now - (now if self._read_s is None else self._read_s)
            self._read_s = now
            self._blind = False
            own = self._places[self._own]
            own.read(Queue(own.ahead, self._left), seconds, own.arrived)
            for name, queue in queues.items():
                if name in before and name != self._own:
                    self._places[name].read(queue, seconds, before[name])

    def lose_sight(self) -> None:
        """The server can't be read: until it is, only what waits here counts."""
        with self._lock:
            self._blind = True

    def _refusal(self, code: str, wait_s: float, left_s: float | None, ahead: int) -> Overloaded:
        least, most = RETRY_AFTER_S
        allowed = f"{self._max_wait_s:g} s" if code == "queue" else f"the caller's {left_s:.2f} s"
        return Overloaded(
            code,
            min(most, max(least, wait_s)),
            f"got a request that would wait {wait_s:.2f} s behind {ahead} others; expected at most {allowed}: "
            "try again later, or add servers",
        )


def _windowed(finished: float, seconds: float) -> tuple[float, float]:
    share = min(1.0, RATE_WINDOW / finished) if finished else 1.0
    return finished * share, seconds * share
