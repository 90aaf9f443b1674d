"""Measures what a server does at each number of requests inside it, for the capacity model."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cmt_client.errors import InferenceFailed
from cmt_perf.capacity import Point, ServiceCurve, percentiles
from cmt_perf.traffic import Asked, Outcome, Traffic, TrafficPlan, traffic_items
from cmt_pipeline.progress import Progress

CONCURRENCIES = (1, 2, 3, 4, 6, 8, 12, 16, 24)
ANSWERS = 400  # at each concurrency
WARM_UP = 40  # answers that aren't counted
TIMEOUT_S = 600.0
MOST_WORK = 400  # single requests that are kept


def measure(
    plan: TrafficPlan,
    progress: Progress,
    *,
    cores: int,
    conditions: dict[str, Any],
    concurrencies: Sequence[int] = CONCURRENCIES,
    answers: int = ANSWERS,
) -> ServiceCurve:
    """The curve of the server that a plan asks, with its items. InferenceFailed when requests fail."""
    points: list[Point] = []
    work: list[float] = []
    for number, concurrency in enumerate(concurrencies):
        progress(f"{concurrency} at a time", number / len(concurrencies))
        closed = replace(plan, closed_grpc=concurrency, closed_http=0, open_rate=0.0)
        asked = ask(closed, WARM_UP + answers)[WARM_UP:]
        latencies = [one.latency_ms for one in asked]
        seconds = asked[-1].came_s - asked[0].came_s
        found = percentiles(latencies)
        points.append(
            Point(concurrency, (len(asked) - 1) / seconds, found["mean_ms"], found["p50_ms"], found["p95_ms"])
        )
        if concurrency == 1:
            work = [latency / found["mean_ms"] for latency in latencies[:MOST_WORK]]
    sizes = [sum(len(part) for part in item.values() if isinstance(part, (bytes, str))) for item in traffic_items(plan)]
    return ServiceCurve(tuple(points), tuple(work), float(np.mean(sizes)), cores, conditions)


def ask(plan: TrafficPlan, answers: int) -> list[Asked]:
    """So many answers of a plan's traffic, by when they were answered. InferenceFailed when a request fails."""
    with tempfile.TemporaryDirectory() as folder, Traffic(plan, Path(folder) / "asked") as traffic:
        traffic.wait_for(answers, TIMEOUT_S)
        outcome: Outcome = traffic.stop()
    failed = [one.error for one in outcome.asked if one.error]
    if failed or outcome.lost:
        count = len(failed) + outcome.lost
        raise InferenceFailed(f"{count} of {outcome.sent} requests failed, the first: {failed[:1]}")
    return sorted(outcome.asked, key=lambda one: one.came_s)[:answers]
