"""`make bench-gpu`: builds, measures and serves `base` on this machine's GPU within a time, and writes what it found.

    python -m cmt_perf.gpu.run STATE OUT [--serve PYTHON] [--until SECONDS] [--dry]

Every section is written as soon as it is done, so that a machine that is taken away leaves what was found by then. A
section that fails says why in its place, and the next one goes on. --dry: the same on the CPU, with the `mini` preset
and few requests.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from cmt_perf.conditions import conditions, to_text
from cmt_perf.gpu import served, stages
from cmt_perf.gpu.machine import DRIVER_QUESTION, nvidia_smi
from cmt_perf.gpu.page import write_page
from cmt_release.release import Release, newest_release

RESULT, PAGE = "gpu.json", "gpu.html"
BUDGET_S, DRY_BUDGET_S = 460.0, 1800.0
INSTANCES = (1, 2, 4)


@dataclass(frozen=True)
class Scale:
    """How much of it. precisions: the first one is measured, the second is what it is upgraded to."""

    preset: str
    engine: str
    device: stages.Device
    precisions: tuple[str, ...]
    batches: Sequence[int]
    concurrencies: Sequence[int]
    answers: int
    instances: Sequence[int]


GPU = Scale("base", "aotinductor_cuda", "cuda", ("bf16", "fp16"), stages.BATCHES, served.CONCURRENCIES, 300, INSTANCES)
DRY = Scale("mini", "aotinductor", "cpu", ("bf16", "fp32"), (1, 2), (1, 2), 20, (1, 2))


class Bench:
    """Sections by name, each written when it is done."""

    def __init__(self, scale: Scale, state: Path, out: Path, serve: Path, budget_s: float) -> None:
        self.scale, self.state, self.out, self.serve = scale, state, out, serve
        self.start = time.monotonic()
        self.until = self.start + budget_s
        self.result: dict[str, Any] = {}
        out.mkdir(parents=True, exist_ok=True)

    def section(self, name: str, make: Callable[[], Any]) -> None:
        """Its value, or why there is none, under its name."""
        began = time.monotonic()
        if began > self.until:
            self.result[name] = {"skipped": "the time was over"}
        else:
            try:
                self.result[name] = make()
            except Exception as error:  # whatever it is, the sections after it are worth having
                self.result[name] = {"failed": f"{type(error).__name__}: {error}"[-3000:]}
                traceback.print_exc()
        self.result.setdefault("seconds", {})[name] = round(time.monotonic() - began, 1)
        (self.out / RESULT).write_text(to_text(self.result))
        (self.out / PAGE).write_text(write_page(self.result))
        print(f"{time.monotonic() - self.start:6.1f} s  {name}: {str(self.result[name])[:300]}", flush=True)

    def run(self) -> None:
        self.section("conditions", self._conditions)
        self.section("peaks", lambda: stages.peaks(self.scale.device))
        self.section("build", self._build)
        self.section("parity", self._parity)
        first, *further = self.scale.instances
        self.section(f"served_{first}", partial(self._served, first))
        self.section("stages", self._stages)
        self.section("torch_compile", partial(self._stages, compiled=True))
        for instances in further:
            self.section(f"served_{instances}", partial(self._served, instances))

    def _conditions(self) -> dict[str, Any]:
        found = conditions(
            gpu="; ".join(nvidia_smi(f"{DRIVER_QUESTION},clocks.max.sm")),
            request=served.sizes(),
            scale=asdict(self.scale),
        )
        return found | {"peaks": "measured on the spot: large matrix products, and a copy read and written"}

    def _build(self) -> dict[str, Any]:
        """Both releases at once."""
        began, processes = time.monotonic(), {}
        for precision in self.scale.precisions:
            command = [sys.executable, "-m", "cmt_cli.main", "export", "--preset", self.scale.preset]
            command += ["--random-weights", "--engine", self.scale.engine, "--precision", precision]
            with (self.out / f"export-{precision}.log").open("wb") as log:
                processes[precision] = subprocess.Popen(
                    [*command, "--state", str(self.state)], stdout=log, stderr=subprocess.STDOUT
                )
        ended = {precision: process.wait() for precision, process in processes.items()}
        logs = {p: (self.out / f"export-{p}.log").read_text()[-1500:] for p, code in ended.items() if code}
        return {"seconds": round(time.monotonic() - began, 1), "rc": ended, "logs": logs}

    def _release(self, precision: str) -> Release:
        return newest_release(self.state / "releases", precision)

    def _parity(self) -> dict[str, Any]:
        rows = {}
        for precision in self.scale.precisions:
            release = self._release(precision)
            rows[precision] = [dict(row) for row in release.manifest.parity]
        return rows | {"compiled_mb": served.compiled_mb(self._release(self.scale.precisions[0]))}

    def _stages(self, compiled: bool = False) -> dict[str, Any]:
        from cmt_export.checkpoint import checkpoint_from_preset
        from cmt_pipeline.labels import DEFAULT_LABEL_SET

        checkpoint = checkpoint_from_preset(self.scale.preset, DEFAULT_LABEL_SET, random_weights=True, seed=0)
        found = {} if compiled else {"cpu_eager_fp32_ms": stages.cpu_rows(checkpoint)}
        release, batches = self._release(self.scale.precisions[0]), (1,) if compiled else self.scale.batches
        rows = stages.measure_stages(checkpoint, release, self.scale.device, self.until, batches, compiled)
        return found | {"rows": list(rows)}

    def _served(self, instances: int) -> dict[str, Any]:
        first = instances == self.scale.instances[0]
        release = self._release(self.scale.precisions[0])
        server = served.Server(self.serve, self.state, release.number, instances, self.out)
        with server.running() as ready_s:
            found: dict[str, Any] = {"ready_s": round(ready_s, 1), "memory": nvidia_smi("memory.used")}
            if first:
                found["subsets"] = served.subsets(server, release)
                found["single_stream"] = served.single_stream(server)
            found["load"] = served.load(server, self.scale.answers, self.scale.concurrencies)
            if first and len(self.scale.precisions) > 1 and time.monotonic() < self.until:
                found["upgrade"] = served.upgrade(server, self._release(self.scale.precisions[1]), self.out)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("state", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--serve", type=Path, default=Path(sys.executable))
    parser.add_argument("--until", type=float, help=f"seconds; {BUDGET_S:.0f}, with --dry {DRY_BUDGET_S:.0f}")
    parser.add_argument("--precisions", default="", help="bf16,fp16: measured in the first, upgraded to the second")
    parser.add_argument("--dry", action="store_true")
    given = parser.parse_args()
    scale = DRY if given.dry else GPU
    if given.precisions:
        scale = replace(scale, precisions=tuple(given.precisions.split(",")))
    until = given.until or (DRY_BUDGET_S if given.dry else BUDGET_S)
    Bench(scale, given.state, given.out, given.serve, until).run()


if __name__ == "__main__":
    main()
