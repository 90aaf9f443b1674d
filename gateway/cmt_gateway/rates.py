"""Requests of each caller: counted in Redis for all replicas together, or in this one."""

from __future__ import annotations

import logging
import time
from typing import cast

from limits import parse
from limits.aio.storage import MemoryStorage, Storage
from limits.aio.strategies import MovingWindowRateLimiter
from limits.errors import ConfigurationError
from limits.storage import storage_from_string

from cmt_gateway.problems import Refused

LOG = logging.getLogger(__name__)

IN_MEMORY = "memory"
REDIS = ("redis", "rediss", "redis+sentinel", "redis+cluster")
#: A store that doesn't answer holds no request up for longer.
STORE_TIMEOUT_S = 0.25
#: After a failure, for so long it isn't asked.
AWAY_S = 5.0


class Rates:
    """While the store is away, each replica counts its own: a store that is down neither stops nor opens the door.

    rate: as `limits` writes it; storage: `memory`, or a URL of REDIS. ValueError for another one.
    """

    def __init__(self, rate: str, storage: str = IN_MEMORY) -> None:
        self._rate = parse(rate)
        self._here = MovingWindowRateLimiter(MemoryStorage())
        self._shared = None if storage == IN_MEMORY else MovingWindowRateLimiter(_redis(storage))
        self._away_until = 0.0

    async def check(self, who: str) -> None:
        """Counts a request. Raises Refused for one too many."""
        if self._shared and time.monotonic() >= self._away_until:
            try:
                await self._hit(self._shared, who)
                return
            except Refused:
                raise
            except Exception as error:  # whatever its library raises
                self._away_until = time.monotonic() + AWAY_S
                LOG.warning("the store of rates failed (%s): each replica counts its own requests", error)
        await self._hit(self._here, who)

    async def _hit(self, limiter: MovingWindowRateLimiter, who: str) -> None:
        if not await limiter.hit(self._rate, who):
            window = await limiter.get_window_stats(self._rate, who)
            wait_s = max(0.1, window.reset_time - time.time())
            raise Refused(429, "rate", f"more than {self._rate} of this caller", retry_after_s=round(wait_s, 1))


def _redis(url: str) -> Storage:
    scheme, _, rest = url.partition("://")
    told = f"rate storage: got {scheme}://{rest.rpartition('@')[2]}; expected {IN_MEMORY} or redis://host:port"
    if scheme not in REDIS:
        raise ValueError(told)
    bounds = {"socket_timeout": STORE_TIMEOUT_S, "socket_connect_timeout": STORE_TIMEOUT_S}
    try:
        return cast(Storage, storage_from_string(f"async+{url}", implementation="redispy", **bounds))
    except ConfigurationError as error:
        raise ValueError(f"{told}, which needs pip install 'cmt-triton[redis]' ({error})") from error
