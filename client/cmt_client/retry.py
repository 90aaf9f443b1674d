"""Budget: how long a caller waits altogether, and when another try is made.

Only ServerUnavailable is tried again: inference changes nothing, so that repeating a request which may have
run is safe, while a wrong input stays wrong and a missed deadline is over.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from cmt_client.errors import DeadlineExceeded, ServerUnavailable

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0


class Budget:
    """One caller's seconds and retries, over all the tries that its answer takes."""

    def __init__(
        self,
        timeout_s: float,
        retries: int,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._timeout_s = timeout_s
        self._end_s = clock() + timeout_s
        self._retries = retries
        self._longest_pause_s = FIRST_PAUSE_S
        self._clock = clock
        self._jitter = jitter

    def remaining_s(self) -> float:
        """Seconds that the next call may take. Raises DeadlineExceeded when none are left."""
        left = self._end_s - self._clock()
        if left <= 0:
            raise DeadlineExceeded(f"no answer within {self._timeout_s:g} s")
        return left

    def pause_s(self, error: ServerUnavailable) -> float:
        """Seconds to wait before the next try: twice as long each time, less a random part.

        Raises `error` when the retries are used up, or when waiting would outlast the deadline.
        """
        pause = self._jitter(self._longest_pause_s / 2, self._longest_pause_s)
        if self._retries <= 0 or self._clock() + pause >= self._end_s:
            raise error
        self._retries -= 1
        self._longest_pause_s = min(LONGEST_PAUSE_S, 2 * self._longest_pause_s)
        return pause
