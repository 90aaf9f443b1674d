"""Mixed traffic for locust: all seven subsets over gRPC, in a ramp that goes up in steps and down again.

    locust -f perf/cmt_perf/locustfile.py --host grpc://127.0.0.1:8001                      # with locust's web page
    locust -f perf/cmt_perf/locustfile.py --host grpc://127.0.0.1:8001 --headless -t 2m     # without

CMT_RAMP=1,4,8 sets how many users each step has, CMT_STEP_S how long a step takes.
"""

from __future__ import annotations

import itertools
import os
import time
from typing import Any

import grpc.experimental.gevent as grpc_gevent
from locust import LoadTestShape, User, constant_pacing, events, task

from cmt_client import EmotionClient, EmotionError, Item
from cmt_perf.traffic import TrafficPlan, traffic_items
from cmt_pipeline.modality import SUBSETS, ordered
from cmt_pipeline.pipelines import pipeline_name

grpc_gevent.init_gevent()  # grpc's own threads would stop locust's

PACE_S = 0.5  # between a user's requests, where answers come in time
RAMP = "CMT_RAMP"
STEP_S = "CMT_STEP_S"
ITEMS = 4 * len(SUBSETS)
AUDIO_S = 2.5


class Ramp(LoadTestShape):
    """Steps up through CMT_RAMP, then ends."""

    users = tuple(int(count) for count in os.environ.get(RAMP, "1,2,4,8,4").split(","))
    step_s = float(os.environ.get(STEP_S, "20"))

    def tick(self) -> tuple[int, float] | None:
        step = int(self.get_run_time() // self.step_s)
        return (self.users[step], float(self.users[step])) if step < len(self.users) else None


class Person(User):
    """Somebody who keeps asking, about another subset of modalities each time."""

    wait_time = constant_pacing(PACE_S)
    _seeds = itertools.count()

    def on_start(self) -> None:
        plan = TrafficPlan(self.host, self.host, items=ITEMS, audio_s=AUDIO_S, seed=next(self._seeds))
        self._items = itertools.cycle(traffic_items(plan))
        self._client = EmotionClient(self.host, retries=0)

    def on_stop(self) -> None:
        self._client.close()

    @task
    def ask(self) -> None:
        item = next(self._items)
        start, failed = time.perf_counter(), None
        try:
            self._client.predict(**item)
        except EmotionError as error:
            failed = error
        self._record(item, (time.perf_counter() - start) * 1e3, failed)

    def _record(self, item: Item, latency_ms: float, failed: EmotionError | None) -> None:
        event: dict[str, Any] = {"request_type": "gRPC", "name": pipeline_name(ordered(item))}
        events.request.fire(**event, response_time=latency_ms, response_length=0, exception=failed, context={})
