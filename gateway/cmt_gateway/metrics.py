"""What a gateway counts, in Prometheus' words. Nothing of it names a person, a key or a content."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

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
        self.refusals = Counter("cmt_gateway_refusals", "Requests refused, by code.", ("code",), registry=registry)
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
        self.actions = Counter(
            "cmt_gateway_actions", "What policies decided to do.", ("policy", "action"), registry=registry
        )
        self.held_bytes = Gauge("cmt_gateway_held_bytes", "Bodies of requests in memory.", registry=registry)

    def text(self) -> bytes:
        return generate_latest(self._registry)
