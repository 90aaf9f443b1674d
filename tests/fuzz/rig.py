"""Gives inputs to a target in a child process, and notices a crash, a hang, too much memory, and what isn't a refusal.

The i-th input of a target is the same for the same seed, however many come before it.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import multiprocessing
import os
import resource
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import TimeoutError as TooSlow
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from pebble import ProcessExpired, ProcessPool

from cmt_server.child import PR_SET_PDEATHSIG
from fuzz.mutations import mutated
from fuzz.targets import Run, Target

HANG_S = 2.0  # of a core
STUCK_S = 30.0  # on the clock: for what waits without using a core
BUDGET_BYTES = 512 << 20  # that a process may grow by for one input
FAULTS = ("crash", "hang", "memory", "untyped", "contract")
WARMING = 20  # inputs by which a target without seeds loads its libraries
GENERATED_BYTES = (64, 256, 1024, 4096)


@dataclass(frozen=True)
class Met:
    """How an input was met. word: `answered`, or the refusal's code; fault: one of FAULTS, or None; where: what is the
    same for all inputs that show the same fault; seconds: of a core; grown: bytes that the process grew by at most."""

    word: str
    fault: str | None = None
    where: str = ""
    seconds: float = 0.0
    grown: int = 0


@dataclass
class Tally:
    """What came of a target's inputs. faults: by what they are and where, how often; slowest, biggest: how much and
    which input (its number)."""

    target: str
    tried: int = 0
    words: Counter[str] = field(default_factory=Counter)
    faults: Counter[tuple[str, str]] = field(default_factory=Counter)
    slowest: tuple[float, int] = (0.0, 0)
    biggest: tuple[int, int] = (0, 0)

    def add(self, index: int, met: Met) -> bool:
        """Whether it is the first of its fault."""
        self.tried += 1
        self.words[met.word] += 1
        self.slowest = max(self.slowest, (met.seconds, index))
        self.biggest = max(self.biggest, (met.grown, index))
        if met.fault:
            self.faults[met.fault, met.where] += 1
        return bool(met.fault) and self.faults[met.fault or "", met.where] == 1

    def count(self, fault: str) -> int:
        return sum(times for (what, _), times in self.faults.items() if what == fault)

    def to_json(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "tried": self.tried,
            **{fault: self.count(fault) for fault in FAULTS},
            "slowest_s": round(self.slowest[0], 3),
            "slowest_input": self.slowest[1],
            "biggest_mb": round(self.biggest[0] / 1e6, 1),
            "biggest_input": self.biggest[1],
            "met": dict(self.words.most_common()),
        }


class Child:
    """A process that inputs are given to; another one once it crashed or hung. Leaves nothing behind when closed."""

    def __init__(self, folder: Path, warming: Sequence[tuple[Run, bytes]], quiet: bool = True) -> None:
        """warming: what loads the libraries of the targets to come."""
        self._pool = ProcessPool(
            1,
            initializer=_begin,
            initargs=(folder, tuple(warming), quiet),
            context=multiprocessing.get_context("spawn"),  # as threads and libraries have left nothing in it
        )

    def __enter__(self) -> Child:
        """Once it is ready: what it takes to start is no input's."""
        self._pool.schedule(os.getpid).result()
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.stop()
        self._pool.join()

    def meet(self, target: Target, data: bytes) -> Met:
        task = self._pool.schedule(_met, (target.run, target.refusals, data), timeout=STUCK_S)
        try:
            met: Met = task.result()
        except TooSlow:
            return Met("hang", "hang", "no end", STUCK_S)
        except ProcessExpired as error:
            return Met("crash", "crash", f"exit status {error.exitcode}")
        return met


@contextlib.contextmanager
def scratch(beneath: Path) -> Iterator[Path]:
    """A folder for what a target needs and the libraries leave lying, gone afterwards."""
    beneath.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=beneath, prefix="scratch-") as folder:
        yield Path(folder)


def fuzz(target: Target, folder: Path, kept: Path, seed: int, more: Callable[[Tally], bool]) -> Tally:
    """Tries inputs while `more` says so. folder: scratch; kept: where inputs that show a fault are written."""
    seeds = target.seeds(folder)
    with Child(folder, warming(target, seeds)) as child:
        return tried(child, target, seeds, kept, seed, more)


def tried(
    child: Child, target: Target, seeds: Sequence[bytes], kept: Path, seed: int, more: Callable[[Tally], bool]
) -> Tally:
    tally = Tally(target.name)
    while more(tally):
        index = tally.tried
        data = made(target.name, seeds, seed, index)
        met = child.meet(target, data)
        if tally.add(index, met):
            kept.mkdir(parents=True, exist_ok=True)
            file = kept / f"{target.name}.{met.fault}.{hashlib.sha256(data).hexdigest()[:12]}"
            file.write_bytes(data)
            print(f"{target.name}: {met.fault} at input {index}, kept as {file}: {met.where}", flush=True)
    return tally


def warming(target: Target, seeds: Sequence[bytes]) -> list[tuple[Run, bytes]]:
    """Inputs by which it loads its libraries."""
    return [(target.run, data) for data in seeds or (made(target.name, (), 0, -n) for n in range(1, WARMING + 1))]


def made(target: str, seeds: Sequence[bytes], seed: int, index: int) -> bytes:
    """The input of a number: first the seeds as they are."""
    random = Random(f"{seed} {target} {index}")
    if not seeds:
        return random.randbytes(random.choice(GENERATED_BYTES))
    if index < len(seeds):
        return seeds[index]
    return mutated(random.choice(seeds), random.choice(seeds), random)


def _begin(folder: Path, warming: Sequence[tuple[Run, bytes]], quiet: bool) -> None:
    """In the child: it ends with the parent, leaves nothing outside the folder, has loaded the libraries, and takes no
    more memory than twice the budget from then on."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to handle
    os.chdir(folder)
    tempfile.tempdir = str(folder)
    os.environ |= {"TMPDIR": str(folder), "HF_HUB_OFFLINE": "1"}
    if quiet:  # libraries say much of damaged files
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    for run, data in warming:
        with contextlib.suppress(Exception):
            run(data)
    most = _kilobytes("VmSize") * 1024 + 2 * BUDGET_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _met(run: Run, refusals: tuple[type[Exception], ...], data: bytes) -> Met:
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    before, began = _kilobytes("VmHWM"), time.process_time()
    fault, where = None, ""
    try:
        word = run(data)
    except refusals as error:
        word = str(getattr(error, "code", type(error).__name__))
    except MemoryError as error:
        word, fault, where = "memory", "memory", _place_of(error)
    except AssertionError as error:
        word, fault, where = "contract", "contract", f"{_place_of(error)}: {error}"
    except BaseException as error:  # a panic of Rust's is no Exception
        word, fault, where = "untyped", "untyped", f"{_place_of(error)}: {type(error).__name__}"
    seconds, grown = time.process_time() - began, (_kilobytes("VmHWM") - before) * 1024
    if fault is None and seconds > HANG_S:
        fault, where = "hang", word
    elif fault is None and grown > BUDGET_BYTES:
        fault, where = "memory", word
    return Met(word, fault, where, seconds, grown)


def _place_of(error: BaseException) -> str:
    """The line of ours that it went through last, and where it was raised."""
    frames = traceback.StackSummary.extract(traceback.walk_tb(error.__traceback__), lookup_lines=False)
    own = [frame for frame in frames if "/cmt_" in frame.filename] or frames
    return " -> ".join(dict.fromkeys(f"{Path(frame.filename).name}:{frame.lineno}" for frame in (own[-1], frames[-1])))


def _kilobytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
