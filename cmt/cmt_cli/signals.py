"""SIGINT and SIGTERM as a wish to stop, which long work looks at or is interrupted by."""

from __future__ import annotations

import contextlib
import queue
import signal
from collections.abc import Iterator


class Stopped(BaseException):
    """Somebody wants this process to stop. No Exception: nothing on the way handles it by mistake."""


class StopSignal:
    """Set by the first of its signals.

    A handler may run within itself and within `wait`: what it calls has to bear that, as a SimpleQueue does and an
    Event doesn't.
    """

    def __init__(self) -> None:
        self._is_set = False
        self._came: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._raises = False

    def wait(self, timeout_s: float) -> bool:
        """Whether a signal came by then."""
        if not self._is_set:
            with contextlib.suppress(queue.Empty):
                self._came.get(timeout=timeout_s)
        return self._is_set

    def check(self, *_: object) -> None:
        """Raises Stopped if a signal came."""
        if self._is_set:
            raise Stopped

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, the first signal raises Stopped wherever the work is: for work that may be cut off anywhere."""
        self._raises = True
        try:
            self.check()
            yield
        finally:
            self._raises = False

    def handle(self, *_: object) -> None:
        first, self._is_set = not self._is_set, True
        if first:
            self._came.put(None)
        if first and self._raises:
            raise Stopped


@contextlib.contextmanager
def stop_signal(*others: signal.Signals) -> Iterator[StopSignal]:
    """What SIGINT and SIGTERM set, from now on, and other signals that nobody has chosen to ignore."""
    stop = StopSignal()
    numbers = [signal.SIGINT, signal.SIGTERM, *(n for n in others if signal.getsignal(n) != signal.SIG_IGN)]
    before = {number: signal.signal(number, stop.handle) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
