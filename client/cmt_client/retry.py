"""Budget: how long a caller waits altogether, and when another try is made.

Only ServerUnavailable is tried again: inference changes nothing, so that repeating a request which may have
run is safe, while a wrong input stays wrong and a missed deadline is over.

What an overloaded server refused is tried again later than it says, and only as long as refusals are the exception: all
callers of a client share an Allowance, so that a storm isn't made worse by those who wait it out (the retry throttling
of gRPC's proposal A6).
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

from cmt_client.errors import DeadlineExceeded, Overloaded, ServerUnavailable

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0
RETRY_SHARE = 0.1  # of all requests: so many may be repeats of refused ones
MOST_RETRIES = 10.0  # at once, after a time without any


class Allowance:
    """How many refused requests may be tried again: each new request earns a share of one. Any number of threads.

    most: at once, after a time without any; 0 for none ever.
    """

    def __init__(self, most: float = MOST_RETRIES) -> None:
        self._most = self._retries = most
        self._lock = threading.Lock()

    def earn(self) -> None:
        with self._lock:
            self._retries = min(self._most, self._retries + RETRY_SHARE)

    def spend(self) -> bool:
        """Whether one is left, which is used up."""
        with self._lock:
            left = self._retries >= 1
            self._retries -= left
            return left


class Budget:
    """One caller's seconds and retries, over all the tries that its answer takes."""

    def __init__(
        self,
        timeout_s: float,
        retries: int,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[float, float], float] = random.uniform,
        allowance: Allowance | None = None,
    ) -> None:
        self._timeout_s = timeout_s
        self._end_s = clock() + timeout_s
        self._retries = retries
        self._longest_pause_s = FIRST_PAUSE_S
        self._clock = clock
        self._jitter = jitter
        self._allowance = allowance or Allowance()
        self._allowance.earn()

    def remaining_s(self) -> float:
        """Seconds that the next call may take. Raises DeadlineExceeded when none are left."""
        left = self._end_s - self._clock()
        if left <= 0:
            raise DeadlineExceeded(f"no answer within {self._timeout_s:g} s")
        return left

    def pause_s(self, error: ServerUnavailable) -> float:
        """Seconds to wait before the next try: twice as long each time, less a random part, after what the server says.

        Raises `error` when the retries are used up, or when waiting would outlast the deadline.
        """
        pause = self._jitter(self._longest_pause_s / 2, self._longest_pause_s)
        pause += error.retry_after_s if isinstance(error, Overloaded) else 0.0
        if self._retries <= 0 or self._clock() + pause >= self._end_s:
            raise error
        if isinstance(error, Overloaded) and not self._allowance.spend():
            raise error
        self._retries -= 1
        self._longest_pause_s = min(LONGEST_PAUSE_S, 2 * self._longest_pause_s)
        return pause
