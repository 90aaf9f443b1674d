"""What a stage that every request meets first counts, in Triton's own Prometheus metrics.

    cmt_accepted_total{pipeline, release}               requests that went on to the encoders
    cmt_refusals_total{pipeline, release, field, code}  requests turned away: for what they carry, for load, draining
    cmt_release_loaded{release, digest, …}              1 while a release is loaded, 0 once it isn't any more

Triton's counters know neither: an ensemble's say `version="1"` and one kind of failure. What Triton calls a failure of
a pipeline and isn't a refusal is a fault of ours. Requests to the pipelines of a release on trial count under the plain
names of those: `release` tells them apart.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import triton_python_backend_utils as pb

from cmt_pipeline.release_info import ReleaseStamp

ACCEPTED = "cmt_accepted_total"
REFUSALS = "cmt_refusals_total"
LOADED = "cmt_release_loaded"


class RequestCounts:
    """Counters of one stage version, for any number of threads. warm_ups: requests to leave out, as Triton sends them
    itself before any other."""

    def __init__(self, stamp: ReleaseStamp | None, warm_ups: int) -> None:
        self._release = str(stamp.release) if stamp else ""
        self._warm_ups = warm_ups
        self._families = {
            ACCEPTED: _family(ACCEPTED, "Requests that went on to the encoders", pb.MetricFamily.COUNTER),
            REFUSALS: _family(REFUSALS, "Requests turned away", pb.MetricFamily.COUNTER),
        }
        self._metrics: dict[tuple[str, ...], Any] = {}
        self._news: Counter[tuple[str, ...]] = Counter()
        self._lock = threading.Lock()

    @property
    def warming_up(self) -> bool:
        return self._warm_ups > 0

    def note(self, pipeline: str, refusal: tuple[str, str] | None) -> None:
        """One request, and the field and code of its refusal; it shows after the next `publish`."""
        with self._lock:
            if self._warm_ups > 0:
                self._warm_ups -= 1
            elif refusal is None:
                self._news[ACCEPTED, pipeline] += 1
            else:
                self._news[(REFUSALS, pipeline, refusal[0], refusal[1])] += 1

    def publish(self) -> None:
        """Lets the metrics show what was noted, with one call of Triton's for each kind."""
        with self._lock:
            for key, count in self._news.items():
                if key not in self._metrics:
                    name, *values = key
                    labels = dict(zip(("pipeline", "field", "code"), values, strict=False))
                    self._metrics[key] = self._families[name].Metric(labels={**labels, "release": self._release})
                self._metrics[key].increment(count)
            self._news.clear()


class LoadedRelease:
    """Says that a release is loaded, until `leave`."""

    def __init__(self, stamp: ReleaseStamp) -> None:
        family = _family(LOADED, "Whether a release is loaded", pb.MetricFamily.GAUGE)
        names = ("release", "digest", "label_set", "preset", "engine", "precision")
        self._kept = family  # a family that is let go takes its metrics along
        self._metric = family.Metric(labels={name: str(getattr(stamp, name)) for name in names})
        self._metric.set(1)

    def leave(self) -> None:
        self._metric.set(0)


def _family(name: str, description: str, kind: Callable[..., Any] | Any) -> Any:
    return pb.MetricFamily(name=name, description=description, kind=kind)


def warm_ups(config: Mapping[str, Any]) -> int:
    """How many requests Triton makes of a model's configuration before any other."""
    return sum(max(1, int(sample.get("count", 0))) for sample in config.get("model_warmup", ()))
