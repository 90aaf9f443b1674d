"""`cmt tune`: threads, instances, priority, delays and precision for this machine, by measuring the whole ensemble.

The search starts with what `cmt serve` does by default, on each release that is offered (one for each precision or
engine), and from the best of these walks along one knob at a time (coordinate descent): which encoder goes before the
others, then threads, instances and delays.
Among what keeps within the latency bound the one with the highest throughput is best; where nothing does, the quickest.
Machines have slow moments: what looks better, and every other release, is served once more beside the best so far, both
are asked in turns, and it takes the place only if the interval of their ratio says so. All that was tried is kept, and
what no other beats in both makes the Pareto front.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from cmt_perf.bench.measure import Measured, interleaved, one_round
from cmt_perf.bench.ratio import ratio_of
from cmt_perf.bench.scenarios import Scenario, Size
from cmt_perf.bench.systems import System, pipeline
from cmt_pipeline.modality import MODALITIES
from cmt_pipeline.progress import Progress, no_progress
from cmt_pipeline.triton_config import DEFAULT_TUNING, StageTuning
from cmt_release.release import Release
from cmt_server.repository import InstallOptions

ENCODERS = tuple(f"encode_{m}" for m in MODALITIES)
DELAYS_US = (0, 200, 1000, 4000)
BEHIND = 10  # niceness of encoders that have time
INSTANCES = (1, 2)
LEAST_GAIN = 0.01  # less isn't worth a second look
DUEL_ROUNDS = 4

Tuning = Mapping[str, StageTuning]


@dataclass(frozen=True)
class TuneOptions:
    """releases: what may be served, one a precision or engine; slo_ms: what `percentile` of a single stream has to keep
    within; concurrency: closed loops under which throughput is measured; trials: configurations at most."""

    releases: Sequence[Release]
    slo_ms: float = 128.0
    cores: int = 2
    percentile: str = "p95_ms"
    concurrency: int = 4
    requests: int = 20
    trials: int = 40
    size: Size = Size()  # noqa: RUF009  # frozen
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.releases:
            raise ValueError("got no release; export one with `cmt export`")
        if self.slo_ms <= 0 or self.trials < 1:
            raise ValueError(f"slo_ms and trials: got {self.slo_ms:g}, {self.trials}; expected above 0, 1 or more")


@dataclass(frozen=True)
class Trial:
    """One configuration and what it did."""

    release: int
    precision: str
    stages: Tuning
    latency_ms: float
    p50_ms: float
    throughput: float
    peak_mb: float

    def within(self, slo_ms: float) -> bool:
        return self.latency_ms <= slo_ms


class Machine(Protocol):
    """What configurations are tried on."""

    def measure(self, release: Release, stages: Tuning) -> Trial: ...

    def beats(self, challenger: Trial, best: Trial) -> bool:
        """Whether it really does, with both served at once."""
        ...


def tune(options: TuneOptions, progress: Progress, machine: Machine | None = None) -> list[Trial]:
    """Everything that was tried, the best first."""
    found: dict[tuple[int, str], Trial] = {}
    on = machine or ThisMachine(options)

    def tried(release: Release, stages: Tuning) -> Trial | None:
        key = (release.number, repr(sorted(stages.items())))
        if key not in found:
            if len(found) >= options.trials:
                return None
            told = f"release {release.number}, {release.manifest.info.precision}"
            progress(f"{told}: {described(stages)}", len(found) / options.trials)
            found[key] = on.measure(release, stages)
        return found[key]

    best, *others = (trial for release in options.releases if (trial := tried(release, DEFAULT_TUNING)))
    for trial in others:
        within = [each.within(options.slo_ms) for each in (trial, best)]
        if within == [True, False] or (within[0] == within[1] and on.beats(trial, best)):
            best = trial
    release = next(release for release in options.releases if release.number == best.release)
    for knob in _knobs(options.cores):
        for changed in knob(best.stages):
            changed_trial = tried(release, changed)
            if changed_trial is None:
                break
            if _gain(changed_trial, best, options.slo_ms) > LEAST_GAIN and on.beats(changed_trial, best):
                best = changed_trial
    rank = partial(_rank, options.slo_ms)
    return [best, *sorted((trial for trial in found.values() if trial is not best), key=rank)]


def pareto(trials: Sequence[Trial]) -> list[Trial]:
    """Those that no other beats in both latency and throughput, the quickest first."""
    front: list[Trial] = []
    for trial in sorted(trials, key=lambda t: (t.latency_ms, -t.throughput)):
        if not front or trial.throughput > front[-1].throughput:
            front.append(trial)
    return front


def described(stages: Tuning) -> str:
    """In a few words: threads x instances, and the delay of each encoder; in brackets those that wait for others."""
    words = ((f"{n[7:]} {t.threads or 'all'}x{t.instances} {t.queue_delay_us} us", t) for n, t in _encoders(stages))
    return ", ".join(f"({text})" if tuning.niceness else text for text, tuning in words)


def result_of(options: TuneOptions, trials: Sequence[Trial]) -> dict[str, Any]:
    """For tuning.json beside the stages: what was found, and everything that was tried."""
    best = trials[0]
    return {
        "release": best.release,
        "slo_ms": options.slo_ms,
        "met": best.within(options.slo_ms),
        "measure": f"{options.percentile} of a single stream; throughput of {options.concurrency} closed loops",
        "size": asdict(options.size),
        "trials": [asdict(trial) for trial in trials],
    }


def plot(trials: Sequence[Trial], slo_ms: float, path: Path) -> None:
    """Latency against throughput of everything tried, and the front."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for precision in dict.fromkeys(trial.precision for trial in trials):
        same = [trial for trial in trials if trial.precision == precision]
        axes.scatter([t.latency_ms for t in same], [t.throughput for t in same], label=precision)
    front = pareto(trials)
    axes.plot([t.latency_ms for t in front], [t.throughput for t in front], color="#888888", label="Pareto front")
    best = trials[0]
    axes.scatter([best.latency_ms], [best.throughput], s=160, facecolors="none", edgecolors="#b03030", label="best")
    axes.axvline(slo_ms, color="#b03030", linestyle=":", label=f"bound: {slo_ms:g} ms")
    axes.set(xlabel="latency of a single stream in ms", ylabel="answers a second under load", title="Configurations")
    axes.legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _knobs(cores: int) -> Iterator[Callable[[Tuning], Iterator[Tuning]]]:
    """What to turn, in this order; each gives the settings to try from where the search stands."""
    for what, value in (("niceness", BEHIND), ("threads", 1)):
        yield lambda now, what=what, value=value: (  # type: ignore[misc]
            _with(now, [e for e in ENCODERS if e != first], what, value) for first in ENCODERS
        )
    threads = sorted({1, cores // 2 or 1, 0}, key=lambda count: count or cores)
    for stage in (*ENCODERS, "fuse"):
        yield lambda now, stage=stage: (_with(now, (stage,), "threads", v) for v in threads)  # type: ignore[misc]
    for what, values in (("instances", INSTANCES), ("queue_delay_us", DELAYS_US)):
        yield lambda now, what=what, values=values: (_with(now, ENCODERS, what, v) for v in values)  # type: ignore[misc]
    for stage in ENCODERS:
        yield lambda now, stage=stage: (_with(now, (stage,), "instances", v) for v in INSTANCES)  # type: ignore[misc]


def _with(stages: Tuning, names: Sequence[str], what: str, value: int) -> Tuning:
    return {**stages, **{name: replace(stages[name], **{what: value}) for name in names}}


def _gain(trial: Trial, best: Trial, slo_ms: float) -> float:
    """By how much a trial is better: of throughput where both keep the bound, else of latency."""
    if trial.within(slo_ms) and best.within(slo_ms):
        return trial.throughput / best.throughput - 1
    return best.latency_ms / trial.latency_ms - 1


def _rank(slo_ms: float, trial: Trial) -> tuple[bool, float]:
    within = trial.within(slo_ms)
    return not within, -trial.throughput if within else trial.latency_ms


def _encoders(stages: Tuning) -> Iterator[tuple[str, StageTuning]]:
    return ((name, tuning) for name, tuning in stages.items() if name in ENCODERS)


class ThisMachine:
    """Serves configurations on the embedded Triton and asks them."""

    def __init__(self, options: TuneOptions) -> None:
        self._options = options
        self._releases = {release.number: release for release in options.releases}
        self._single = Scenario("single stream", "closed", requests=options.requests, size=options.size)
        self._loaded = replace(
            self._single, name="loaded", concurrency=options.concurrency, requests=2 * options.requests
        )

    def measure(self, release: Release, stages: Tuning) -> Trial:
        with tempfile.TemporaryDirectory() as folder, _served("trial", release, stages, folder) as system:
            alone, busy = (
                Measured("trial", scenario, [one_round(system, scenario, self._options.seed)]).figures()
                for scenario in (self._single, self._loaded)
            )
        if alone["errors"] or busy["errors"]:
            raise RuntimeError(f"requests failed with {described(stages)}; look at the release with `cmt doctor`")
        return Trial(
            release.number,
            release.manifest.info.precision,
            dict(stages),
            alone[self._options.percentile],
            alone["p50_ms"],
            busy["throughput"],
            busy["peak_mb"],
        )

    def beats(self, challenger: Trial, best: Trial) -> bool:
        """By latency: of as many closed loops as decide, where it says the throughput too (Little's law)."""
        both_within = challenger.within(self._options.slo_ms) and best.within(self._options.slo_ms)
        scenario = self._loaded if both_within else self._single
        scenario = replace(scenario, requests=-(-scenario.requests // DUEL_ROUNDS) + scenario.concurrency)
        with (
            tempfile.TemporaryDirectory() as folder,
            _served("best", self._releases[best.release], best.stages, f"{folder}/best") as one,
            _served(
                "challenger", self._releases[challenger.release], challenger.stages, f"{folder}/challenger"
            ) as other,
        ):
            before, after = interleaved([one, other], [scenario], DUEL_ROUNDS, no_progress)
        return ratio_of(before, after).low > 1


def _served(name: str, release: Release, stages: Tuning, folder: str) -> contextlib.AbstractContextManager[System]:
    return pipeline(name, release, Path(folder), InstallOptions(tuning=stages))
