"""`cmt bench`: baseline and pipeline in turns, how cost grows, peers, a second opinion and where the time goes."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cmt_export.checkpoint import checkpoint_from_preset, save_checkpoint
from cmt_perf.bench import analyzer
from cmt_perf.bench.attribution import attribution, read_trace
from cmt_perf.bench.machine import peaks
from cmt_perf.bench.measure import Measured, interleaved, one_round
from cmt_perf.bench.ratio import Ratio, ratio_of
from cmt_perf.bench.scenarios import SINGLE_STREAM, Scenario, Size, growth
from cmt_perf.bench.systems import System, baseline, parts_of, peer, pipeline
from cmt_perf.bench.work import gflop_of
from cmt_perf.conditions import conditions
from cmt_perf.peers.runtimes import parity_of
from cmt_perf.traffic import traffic_items
from cmt_pipeline.progress import Progress, part_of
from cmt_release.release import Release
from cmt_server.repository import InstallOptions

Fusion = Literal["cmt", "conventional"]

OURS, BASELINE, SAME_MODEL = "pipeline", "baseline", "baseline's model through the pipeline"
OPEN_LOADS = (0.1, 0.3, 0.5, 0.7, 0.9)  # of saturation

#: What the paper claims (arXiv 2601.14259): mean response, and how much under a conventional fusion system.
CLAIMED_MS = 128.0
CLAIMED_SAVING = 0.35


@dataclass(frozen=True)
class BenchOptions:
    """release: what is served; install: tuning and limits of the pipelines; baseline: a checkpoint of the conventional
    fusion, served whole in eager PyTorch; same_model: a release of that same checkpoint, so that the model's share of
    the gain and the stack's are told apart; checkpoint: of `release`, which peers serve. rounds: turns of each system;
    requests: counted in each."""

    release: Release
    baseline: Path
    install: InstallOptions | None = None
    same_model: Release | None = None
    checkpoint: Path | None = None
    peers: tuple[str, ...] = ()
    rounds: int = 6
    requests: int = 30
    size: Size = Size()  # noqa: RUF009  # frozen
    growth: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name in self.peers:
            parts_of(name)
        if self.peers and self.checkpoint is None:
            raise ValueError(f"peers: got {', '.join(self.peers)} without the checkpoint that they are to serve")
        if self.rounds < 2:
            raise ValueError(f"rounds: got {self.rounds}; expected 2 or more, for an interval")


def bench(
    options: BenchOptions, progress: Progress, keep: Callable[[Mapping[str, Any]], None] = lambda _: None
) -> dict[str, Any]:
    """Everything measured, with its conditions; see `summary_of` for the least of it. keep: gets what there is after
    each part, so that a failure of a later one costs nothing that was measured."""
    single = replace(SINGLE_STREAM, size=options.size, requests=options.requests)
    with tempfile.TemporaryDirectory() as work, contextlib.ExitStack() as stack:
        folder = Path(work)
        theirs = stack.enter_context(baseline(BASELINE, options.baseline, folder / "baseline"))
        ours = stack.enter_context(pipeline(OURS, options.release, folder / "ours", options.install))
        others = list(_others(options, folder, stack))
        _expect_answers([theirs, ours, *others], single, options.seed)
        found = interleaved(
            [theirs, ours, *others], [single], options.rounds, part_of(progress, 0.0, 0.4), options.seed
        )
        result: dict[str, Any] = {
            "single_stream": {m.system: m.figures() | {"latencies_ms": _rounded(m)} for m in found},
            "ratios": {m.system: asdict(_against(found, m)) for m in found if m.system != BASELINE},
            "best_peer": _best_peer(found, options.peers),
            "peer_parity": {name: _parity_of(options, name) for name in options.peers},
            "conditions": _conditions(options),
        }
        keep(result)
        grown = result["growth"] = _rows(_growth(options, [theirs, ours], part_of(progress, 0.4, 0.75)))
        keep(result)
        saturation = saturation_of(grown, OURS)
        result["open_loop"] = _rows(_open_loops(options, ours, saturation, part_of(progress, 0.75, 0.85)))
        keep(result)
        result["perf_analyzer"] = _second_opinion(options, ours, single)
    result["attribution"] = _attributed(options, single, part_of(progress, 0.9, 1.0))
    result["peaks"] = asdict(peaks())
    result["gflop"] = gflop_of(options.checkpoint or options.baseline, single, options.seed)
    return result


def _conditions(options: BenchOptions) -> dict[str, Any]:
    install = options.install or InstallOptions()
    return conditions(
        options.release,
        size=asdict(options.size),
        rounds=options.rounds,
        seed=options.seed,
        tuning={name: asdict(tuned) for name, tuned in install.tuning.items()},
    )


def conventional(release: Release, folder: Path, model: Fusion = "conventional") -> Path:
    """A checkpoint of the conventional fusion (or of CMT) with a release's sizes and labels, made in `folder` unless it
    is there.

    Its weights are random where none come with a package: they take the same time.
    """
    info = release.manifest.info
    path = folder / f"{model}-{info.preset}-{info.label_set}"
    if not path.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        save_checkpoint(checkpoint_from_preset(info.preset, info.label_set, model=model, random_weights=True), path)
    return path


def summary_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """The figures that the mission asks for, out of a result."""
    single, ratio = result["single_stream"], result["ratios"][OURS]
    most = {system: saturation_of(result["growth"], system) for system in (OURS, BASELINE)}
    ours, theirs = single[OURS], single[BASELINE]
    return {
        "ratio_p50": ratio["ratio"],
        "ratio_p50_interval": [ratio["low"], ratio["high"]],
        "p50_ms": ours["p50_ms"],
        "mean_ms": ours["mean_ms"],
        "baseline_p50_ms": theirs["p50_ms"],
        "baseline_mean_ms": theirs["mean_ms"],
        "best_peer": result.get("best_peer", {}),
        "overhead_ms": result["attribution"]["overhead_ms"],
        **_work(result, ours["p50_ms"]),
        "saturation_throughput_ratio": round(most[OURS] / most[BASELINE], 2) if all(most.values()) else None,
        "claims": {
            "mean_ms": {"claimed": CLAIMED_MS, "measured": ours["mean_ms"], "met": ours["mean_ms"] <= CLAIMED_MS},
            "saving": {
                "claimed": CLAIMED_SAVING,
                "measured": round(1 - ours["mean_ms"] / theirs["mean_ms"], 3),
                "met": ours["mean_ms"] <= (1 - CLAIMED_SAVING) * theirs["mean_ms"],
            },
        },
        "conditions": result["conditions"],
    }


def _work(result: Mapping[str, Any], p50_ms: float) -> dict[str, Any]:
    """GFLOP of a request, and the share of the peak that its p50 stands for: of the machine's quickest large product,
    which without VNNI isn't one of int8."""
    gflop = sum(result.get("gflop", {}).values())
    precision, peak = max(result["peaks"]["gflops"].items(), key=lambda found: found[1])
    share = {"share_of_peak": round(gflop / p50_ms * 1e3 / peak, 3), "peak": {precision: peak}}
    return {"gflop": round(gflop, 1), **share} if gflop else {}


def _expect_answers(systems: Sequence[System], single: Scenario, seed: int) -> None:
    """RuntimeError when one of them has no answer to give: now, not after half an hour of measuring the others."""
    for system in systems:
        first = one_round(system, replace(single, requests=1), seed)
        if not first.latencies_ms:
            raise RuntimeError(f"{system.name} gives no answer: {first.first_error}")


def _others(options: BenchOptions, folder: Path, stack: contextlib.ExitStack) -> Iterator[System]:
    if options.same_model is not None:
        yield stack.enter_context(pipeline(SAME_MODEL, options.same_model, folder / "same-model", options.install))
    for name in options.peers:
        assert options.checkpoint is not None
        yield stack.enter_context(peer(name, options.checkpoint.absolute(), folder / name.replace(":", "-")))


def _growth(options: BenchOptions, systems: Sequence[System], progress: Progress) -> list[Measured]:
    if not options.growth:
        return []
    scenarios = [_sized(scenario, options.size) for scenario in growth(max(8, options.requests // 2))]
    return interleaved(systems, scenarios, max(1, options.rounds // 3), progress, options.seed + 1000)


def _sized(scenario: Scenario, size: Size) -> Scenario:
    """Of the size that is asked for, but for the sound where that is what grows."""
    audio_s = scenario.size.audio_s if "sound" in scenario.name else size.audio_s
    return replace(scenario, size=replace(size, audio_s=audio_s))


def saturation_of(growth: Sequence[Mapping[str, Any]], system: str) -> float:
    """The most answers a second of closed loops that were few enough to be let in, each and every request; 0: none."""
    loops = [row for row in growth if row["system"] == system and row["scenario"].startswith("concurrency")]
    return max((float(row["throughput"]) for row in loops if not row["errors"]), default=0.0)


def _open_loops(options: BenchOptions, ours: System, saturation: float, progress: Progress) -> list[Measured]:
    """The pipeline at shares of what it can do: what a closed loop, which waits for answers, never shows."""
    if not saturation:
        return []
    loops = [
        Scenario(
            f"open loop at {load:.0%}", "open", rate=load * saturation, requests=4 * options.requests, size=options.size
        )
        for load in OPEN_LOADS
    ]
    return interleaved([ours], loops, 1, progress, options.seed + 2000)


def _second_opinion(options: BenchOptions, ours: System, single: Scenario) -> dict[str, Any]:
    """perf_analyzer's figures between two rounds of our own, of the same closed loop; why not, where it isn't there."""
    try:
        analyzer.find_analyzer()
    except analyzer.AnalyzerMissing as error:
        return {"missing": str(error)}
    before = one_round(ours, single, options.seed + 1)
    items = traffic_items(single.plan(ours.kind, ours.url, options.seed + 1))
    theirs = analyzer.closed_loop(ours.url, items, 1, options.requests)
    after = one_round(ours, single, options.seed + 2)
    own = Measured(OURS, single, [before, after]).figures()
    return {"perf_analyzer": theirs, "harness": own, "p50_difference": round(theirs["p50_ms"] / own["p50_ms"] - 1, 3)}


def _attributed(options: BenchOptions, single: Scenario, progress: Progress) -> dict[str, Any]:
    """Of a server that writes a trace; both ends of the same requests."""
    with tempfile.TemporaryDirectory() as work:
        trace = Path(work) / "trace.json"
        progress("attribution", 0.0)
        with pipeline(OURS, options.release, Path(work) / "traced", options.install, trace) as ours:
            seen = one_round(ours, single, options.seed + 3)
        return attribution(read_trace(trace)[-len(seen.latencies_ms) :], seen.latencies_ms)


def _against(found: Sequence[Measured], candidate: Measured) -> Ratio:
    return ratio_of(next(m for m in found if m.system == BASELINE), candidate)


def _parity_of(options: BenchOptions, name: str) -> Mapping[str, float]:
    """Of a peer that computes quantised graphs, how far each stage is from PyTorch fp32."""
    assert options.checkpoint is not None
    return parity_of(options.checkpoint.absolute(), parts_of(name)[1])


def _best_peer(found: Sequence[Measured], peers: Sequence[str]) -> dict[str, Any]:
    """The quickest of the peers, and how many times as fast the pipeline is; nothing without peers."""
    if not peers:
        return {}
    by_name = {m.system: m for m in found}
    best = min((by_name[name] for name in peers), key=lambda m: m.figures()["p50_ms"])
    return {"name": best.system, **asdict(ratio_of(best, by_name[OURS]))}


def _rows(found: Sequence[Measured]) -> list[dict[str, Any]]:
    return [
        {"system": m.system, "scenario": m.scenario.name, "offered": round(m.scenario.rate, 3)} | m.figures()
        for m in found
    ]


def _rounded(measured: Measured) -> list[float]:
    return [round(float(one), 2) for one in np.sort(measured.latencies_ms)]
