"""Trial: a release beside the one that runs, judged by what both answer, how fast, and how live requests fare."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from cmt_client import EmotionClient, EmotionError, Item
from cmt_release.release import Release
from cmt_rollout.errors import StepFailed
from cmt_rollout.live_traffic import LEAST, Counters, Traffic, rise
from cmt_rollout.options import RolloutOptions, Step
from cmt_rollout.release_checks import REFUSALS, Comparison, live_like, slower, timed
from cmt_rollout.target import Target

PAUSE_S = 0.2  # between requests that only watch
LOOK_S = 1.0  # between looks at live requests


class Trial:
    """Of one release on one target, from the moment at which it is loaded. broken: as Comparison's."""

    def __init__(self, target: Target, release: Release, options: RolloutOptions, broken: bool) -> None:
        self._target, self._release, self._options, self._broken = target, release, options, broken
        self._running = target.live()
        self._items = live_like(options, target.golden(self._running).modalities)
        self._loaded = target.counters()
        self._before = Traffic()
        self._usual_ms: dict[int, list[float]] = {}  # what items take the running release, by their identity

    def drift(self) -> str:
        """The same requests to both releases. StepFailed where their answers differ too much."""
        comparison = self._comparison()
        with self._target.client(False) as running, self._target.client(True) as trial:
            for item in self._items:
                comparison.ask(running, trial, item)
        return self._judged("drift", comparison)

    def canary(self) -> str:
        """Clients that follow it send it their share; a few requests of our own go to both all the while."""
        options, target = self._options, self._target
        if options.canary_s == 0:
            return "left out"
        target.share(self._release, options.canary_share)
        # Triton loads live pipelines anew when a candidate comes beside them: their counts begin again, others don't.
        start = self._loaded = target.counters()
        comparison = self._comparison()
        with target.client(False) as running, target.client(True) as trial:
            for item in self._for(options.canary_s):
                comparison.ask(running, trial, item)
                if len(comparison.errors) > 1 + options.max_errors * comparison.asked:
                    break
        told = self._judged("canary", comparison)
        window = target.counters().since(start)
        canary = target.traffic(window, self._release.number, True)
        if worse := rise(canary, target.traffic(window, self._running, False), options.max_errors):
            raise StepFailed("canary", target.name, f"the candidate: {worse}")
        clients = max(0, canary.asked - comparison.asked)
        return (
            f"{options.canary_share:.0%} for {options.canary_s:g} s, {clients} of clients' requests: {canary.told()}; "
            f"{told}"
        )

    def note_live(self) -> None:
        """Takes down how live requests fared since the release was loaded: what a watch compares with."""
        window = self._target.counters().since(self._loaded)
        self._before = self._target.traffic(window, self._running, False)

    def watch(self) -> str:
        """Live requests for a while, and our own. StepFailed where more fail than before, or take longer."""
        start, own = self._target.counters(), _Own()
        looked_s = time.monotonic()
        with self._target.client(False) as client:
            for item in self._for(self._options.watch_s):
                own.ask(client, item, self._usual_ms.get(id(item), ()))
                if time.monotonic() - looked_s > LOOK_S:
                    self._look(start)
                    looked_s = time.monotonic()
        if reason := own.fault(self._options):
            raise StepFailed("watch", self._target.name, reason)
        return self._look(start)

    def _look(self, start: Counters) -> str:
        """How live requests fare now. StepFailed where more fail than before."""
        now = self._target.traffic(self._target.counters().since(start), self._release.number, False)
        if worse := rise(now, self._before, self._options.max_errors):
            raise StepFailed("watch", self._target.name, worse)
        few = "" if now.asked >= LEAST else f" (fewer than {LEAST}: they say little)"
        return f"of live requests {now.told()}{few}; before: {self._before.told()}"

    def _judged(self, step: Step, comparison: Comparison) -> str:
        if faults := comparison.faults(self._options):
            raise StepFailed(step, self._target.name, "; ".join(faults))
        return comparison.summary()

    def _comparison(self) -> Comparison:
        return Comparison(self._broken, self._usual_ms)

    def _for(self, seconds: float) -> Iterator[Item]:
        """Live-like requests, a few a second, until the time is over; at least one."""
        end = time.monotonic() + seconds
        for item in itertools.cycle(self._items):
            yield item
            if time.monotonic() >= end:
                return
            time.sleep(PAUSE_S)


@dataclass
class _Own:
    """Our own requests while a release is watched. ratios: how many times as long as before they took."""

    asked: int = 0
    failed: list[str] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)

    def ask(self, client: EmotionClient, item: Item, usual_ms: Sequence[float]) -> None:
        try:
            _, took_ms = timed(client, item)
        except REFUSALS:
            return
        except EmotionError as error:
            self.failed.append(str(error))
        else:
            self.ratios += [took_ms / statistics.median(usual_ms)] if usual_ms else []
        self.asked += 1

    def fault(self, options: RolloutOptions) -> str | None:
        if len(self.failed) > options.max_errors * self.asked:
            return f"{len(self.failed)} of our {self.asked} requests failed: {self.failed[0]}"
        return slower(self.ratios, options.max_slowdown)
