"""What this machine can do at most, measured on the spot: arithmetic in three precisions, and memory.

Peaks are what large matrix products and copies reach here, not what a data sheet says: a stage is set beside these.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

SIDE = 2048  # of the matrices
COPIED_BYTES = 2**29
SECONDS = 1.5  # of each measurement; the best of the turns within it counts


@dataclass(frozen=True)
class Peaks:
    """gflops: by precision, of all cores together; gbytes_s: read and written by a copy."""

    gflops: dict[str, float]
    gbytes_s: float


def peaks() -> Peaks:
    operations = 2 * SIDE**3 / 1e9
    a = torch.randn(SIDE, SIDE)
    halves = a.to(torch.bfloat16)
    eighths = torch.randint(-8, 8, (SIDE, SIDE), dtype=torch.int8)
    gflops = {
        "fp32": operations / _best(lambda: torch.mm(a, a)),
        "bf16": operations / _best(lambda: torch.mm(halves, halves)),
        "int8": operations / _best(lambda: torch._int_mm(eighths, eighths)),
    }
    source = torch.ones(COPIED_BYTES // 4)
    target = torch.empty_like(source)
    copied = 2 * COPIED_BYTES / 1e9 / _best(lambda: target.copy_(source))
    return Peaks({name: round(value, 1) for name, value in gflops.items()}, round(copied, 2))


def _best(run: Callable[[], object]) -> float:
    """Seconds of the quickest turn."""
    run()
    found: list[float] = []
    until = time.perf_counter() + SECONDS
    while time.perf_counter() < until or not found:
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found)
