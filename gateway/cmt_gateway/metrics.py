"""What a gateway counts, in Prometheus' words. Nothing of it names a person, a key or a content.

What is known to come is there from the start, with 0: so the first fault is an increase, and sums have what they add.
"""

from __future__ import annotations

from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from cmt_gateway.problems import FAULTS
from cmt_session.tracker import Standing

BUCKETS_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.128, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Of one application; registries are never shared, so that several live in one process."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.requests = Counter(
            "cmt_gateway_requests", "Requests answered or refused.", ("route", "status"), registry=registry
        )
        self.seconds = Histogram(
            "cmt_gateway_request_seconds",
            "From a request's head to the end of its answer.",
            ("route",),
            buckets=BUCKETS_S,
            registry=registry,
        )
        self._refusals = Counter(
            "cmt_gateway_refusals", "Requests, sessions and messages refused, by code.", ("code",), registry=registry
        )
        self._faults = Counter(
            "cmt_gateway_faults", "Requests and turns that failed by the service's fault.", ("code",), registry=registry
        )
        for code in FAULTS:
            self._faults.labels(code)
        self.in_flight = Gauge("cmt_gateway_in_flight", "Requests being answered.", registry=registry)
        self.sessions = Gauge("cmt_gateway_sessions", "Live sessions that are open.", registry=registry)
        self.turn_seconds = Histogram(
            "cmt_gateway_turn_seconds",
            "From the message that ended a turn to its answer.",
            buckets=BUCKETS_S,
            registry=registry,
        )
        self.dropped = Counter("cmt_gateway_dropped_frames", "Pictures of live sessions left out.", registry=registry)
        self.states = Counter(
            "cmt_gateway_states", "Answers, by what is known after them.", ("standing",), registry=registry
        )
        for standing in get_args(Standing):
            self.states.labels(standing)
        self.actions = Counter(
            "cmt_gateway_actions", "What policies decided to do.", ("policy", "action"), registry=registry
        )
        self.held_bytes = Gauge("cmt_gateway_held_bytes", "Bodies of requests in memory.", registry=registry)

    def not_answered(self, code: str) -> None:
        """By the code of a `Refused`."""
        (self._faults if code in FAULTS else self._refusals).labels(code).inc()

    def text(self) -> bytes:
        return generate_latest(self._registry)
