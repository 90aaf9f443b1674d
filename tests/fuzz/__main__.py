"""Fuzzes every reader of what others wrote, and writes perf/results/fuzz.json.

PYTHONPATH=tests python -m fuzz --seconds 3600, or `make fuzz`; `--replay INPUT ...` runs inputs again.
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cmt_perf.conditions import conditions, to_text
from cmt_pipeline.preprocess import library_versions
from fuzz.rig import BUDGET_BYTES, FAULTS, HANG_S, Child, Tally, fuzz, made, scratch, warming
from fuzz.targets import TARGETS

ROOT = Path(__file__).parents[2]
STATE = ROOT / ".cmt" / "fuzz"
RESULT = ROOT / "perf" / "results" / "fuzz.json"
PROGRESS_S = 20.0


def main() -> int:
    arguments = _arguments()
    for interruption in (signal.SIGINT, signal.SIGTERM):
        signal.signal(interruption, lambda number, _: sys.exit(128 + number))  # through every `with`
    if arguments.replay:
        return _replay(arguments.replay, arguments.seed)
    chosen = [target for target in TARGETS if target.name in (arguments.target or [target.name])]
    shares = sum(target.share for target in chosen)
    tallies = []
    for target in chosen:
        with scratch(STATE) as folder:
            more = _for_seconds(arguments.seconds * target.share / shares)
            tallies.append(fuzz(target, folder, STATE / "kept", arguments.seed, more))
    faults = sum(_faults_of(tallies).values())
    arguments.out.write_text(to_text(_result(arguments, tallies)))
    print(f"{sum(t.tried for t in tallies)} inputs, {faults} with a fault: {arguments.out}")
    return 1 if faults else 0


def _faults_of(tallies: list[Tally]) -> dict[str, int]:
    return {fault: sum(tally.count(fault) for tally in tallies) for fault in FAULTS}


def _for_seconds(seconds: float) -> Callable[[Tally], bool]:
    """True until the time, counted from the first input, is over; shows on the way how far it is."""
    ends = shown = 0.0

    def more(tally: Tally) -> bool:
        nonlocal ends, shown
        now = time.monotonic()
        ends = ends or now + seconds
        if now > shown + PROGRESS_S or now >= ends:
            shown = now
            left, faults = max(0.0, ends - now), sum(tally.faults.values())
            print(f"{tally.target}: {tally.tried} inputs, {faults} with a fault, {left:.0f} s left", flush=True)
        return now < ends

    return more


def _result(arguments: argparse.Namespace, tallies: list[Tally]) -> dict[str, Any]:
    slowest = max(tallies, key=lambda tally: tally.slowest)
    biggest = max(tallies, key=lambda tally: tally.biggest)
    return {
        "conditions": conditions(
            command=" ".join(["python -m fuzz", *sys.argv[1:]]),
            libraries=library_versions(),
            seed=arguments.seed,
            seconds=arguments.seconds,
            hang_s_of_a_core=HANG_S,
            budget_mb=BUDGET_BYTES / 1e6,
        ),
        "tried": sum(tally.tried for tally in tallies),
        **_faults_of(tallies),
        "slowest": {"s": round(slowest.slowest[0], 3), "target": slowest.target, "input": slowest.slowest[1]},
        "biggest": {"mb": round(biggest.biggest[0] / 1e6, 1), "target": biggest.target, "input": biggest.biggest[1]},
        "targets": [tally.to_json() for tally in tallies],
        "faults": [
            {"target": tally.target, "fault": fault, "where": where, "times": times}
            for tally in tallies
            for (fault, where), times in tally.faults.items()
        ],
    }


def _replay(inputs: list[str], seed: int) -> int:
    """Each input on its own; what the libraries print is shown."""
    failed = 0
    for name in inputs:
        file, number = Path(name), name.partition(":")[2]
        target = next(t for t in TARGETS if t.name == re.split("[.:]", file.name)[0])
        with scratch(STATE) as folder:
            seeds = target.seeds(folder)
            data = file.read_bytes() if file.exists() else made(target.name, seeds, seed, int(number))
            with Child(folder, warming(target, seeds), quiet=False) as child:
                met = child.meet(target, data)
        print(f"{name}: {met}")
        failed += met.fault is not None
    return 1 if failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600, help="of all targets together (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another one makes other inputs")
    parser.add_argument("--target", action="append", choices=[target.name for target in TARGETS])
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--replay", nargs="+", metavar="INPUT", help="a file that was kept, or TARGET:NUMBER of a seed")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
