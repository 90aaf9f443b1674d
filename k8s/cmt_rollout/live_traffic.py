"""How live requests fare, counted by what the server counts: answered, refused for the caller's fault, failed for ours.

What Triton 2.51 counts needs reading: a request that fails counts twice for its ensemble, and as a success for the
stage that refused it. So whoever entered the first stage and got no answer has failed, and `preprocess` and `check`
count by code what they refuse. Where those counters can't be read, refusals stay among the failures, before as now.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from cmt_client.operations import ModelStatistics
from cmt_pipeline.pipelines import CANDIDATE_PREFIX, PIPELINES
from cmt_pipeline.stages import STAGES
from cmt_rollout.significance import SIGNIFICANT, at_least, fisher, wilson

#: Fewer live requests than this say little: then that is said, and what was asked itself decides alone.
LEAST = 30
#: What a release may have failed before where too few requests came to tell.
ASSUMED = 0.01

REFUSING = tuple(name for name, stage in STAGES.items() if stage.kind in ("preprocess", "check"))


@dataclass(frozen=True)
class Count:
    """Requests to one model version on one server."""

    success: int = 0
    fail: int = 0
    success_ns: int = 0

    def since(self, before: Count) -> Count:
        """A model that was loaded anew counts from 0."""
        if self.success < before.success or self.fail < before.fail:
            return self
        return Count(
            self.success - before.success, self.fail - before.fail, max(0, self.success_ns - before.success_ns)
        )


@dataclass(frozen=True)
class Counters:
    """All counts of a moment, or of the time between two.

    models: (server, model, version) -> requests; refused: (server, release, code) -> requests, None where that can't be
    read.
    """

    models: Mapping[tuple[str, str, int], Count]
    refused: Mapping[tuple[str, int, str], int] | None = None

    def since(self, before: Counters) -> Counters:
        """What was counted since."""
        models = {key: count.since(before.models.get(key, Count())) for key, count in self.models.items()}
        if self.refused is None or before.refused is None:
            return Counters(models)
        earlier = before.refused
        refused = {key: n - earlier.get(key, 0) if n >= earlier.get(key, 0) else n for key, n in self.refused.items()}
        return Counters(models, refused)

    def traffic(self, release: int, candidate: bool) -> Traffic:
        """How requests to the pipelines of a release fared, live or on trial."""
        names = {f"{CANDIDATE_PREFIX if candidate else ''}{name}" for name in PIPELINES}
        counts = [count for (_, name, _), count in self.models.items() if name in names]
        answered, counted = sum(c.success for c in counts), sum(c.fail for c in counts)
        # The stages that every request meets first have a version of their own for each release, numbered as it is.
        first = [c for (_, name, version), c in self.models.items() if name in REFUSING and version == release]
        missing = sum(c.success + c.fail for c in first) - answered  # but for those in flight
        failed = min((counted // 2, counted), key=lambda count: abs(count - missing))
        refused = None if self.refused is None else self._refusals(self.refused, release)
        mean_ms = sum(c.success_ns for c in counts) / max(1, answered) / 1e6
        return Traffic(answered, max(0, failed - sum((refused or {}).values())), refused, mean_ms)

    def _refusals(self, counted: Mapping[tuple[str, int, str], int], release: int) -> dict[str, int]:
        """By code."""
        found: dict[str, int] = {}
        for (_, number, code), count in counted.items():
            if number == release and count:
                found[code] = found.get(code, 0) + count
        return found


def counts_of(server: str, statistics: Iterable[ModelStatistics]) -> dict[tuple[str, str, int], Count]:
    """Counters' models, as one server's statistics say them."""
    return {(server, s.name, s.version): Count(s.success.count, s.fail.count, s.success.total_ns) for s in statistics}


@dataclass(frozen=True)
class Traffic:
    """What became of the requests to a release.

    refused: by code; they count for nobody and against nobody. None where they are among the faults.
    """

    answered: int = 0
    faults: int = 0
    refused: Mapping[str, int] | None = field(default_factory=dict)
    mean_ms: float = 0.0

    @property
    def asked(self) -> int:
        """Requests that should have been answered."""
        return self.answered + self.faults

    def told(self) -> str:
        """For people: `3 of 240 failed (1.3 %, 95 %: 0.4 to 3.6), 7 refused (not_decodable 7), mean 12 ms`."""
        low, high = wilson(self.faults, self.asked)
        rate = self.faults / max(1, self.asked)
        what = "failed or were refused" if self.refused is None else "failed"
        text = f"{self.faults} of {self.asked} {what} ({100 * rate:.1f} %, 95 %: {100 * low:.1f} to {100 * high:.1f})"
        if self.refused:
            codes = ", ".join(f"{code} {count}" for code, count in sorted(self.refused.items()))
            text += f", {sum(self.refused.values())} refused ({codes})"
        return f"{text}, mean {self.mean_ms:.0f} ms" if self.answered else text


def rise(now: Traffic, before: Traffic, allowed: float) -> str | None:
    """Why more requests fail now than before, beyond an allowed share and beyond chance; None if they don't."""
    if now.asked == 0 or now.faults / now.asked - before.faults / max(1, before.asked) <= allowed:
        return None
    if before.asked < LEAST:
        assumed = max(ASSUMED, allowed)
        chance, than = at_least(now.faults, now.asked, assumed), f"{100 * assumed:g} %, for too few came before to tell"
    else:
        chance, than = fisher(now.faults, now.asked, before.faults, before.asked), f"before: {before.told()}"
    if chance >= SIGNIFICANT:
        return None
    return f"of live requests {now.told()}; {than}; the chance of that is {chance:.1g}"
