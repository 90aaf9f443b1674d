"""The gate's logic, with a clock of its own: a served queue behind it, played request by request."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmt_pipeline.errors import Overloaded
from cmt_server.admission import LEAST_AHEAD, PROBE_S, Gate, Queue

READ_S = 0.05
MAX_WAIT_S = 0.2
STAGES = ("encode_image", "encode_audio", "encode_text", "fuse")


class Played:
    """Stages behind a gate, each with its own service time and batches, under Poisson arrivals.

    Preparing takes no time. waits: of every request let in, at the stage where it waited longest.
    """

    def __init__(self, service_s: Mapping[str, float], batch: int = 1, seed: int = 0) -> None:
        self.now_s = 0.0
        self.gate = Gate("preprocess", STAGES, MAX_WAIT_S, lambda: self.now_s)
        self.service_s, self.batch = dict(service_s), batch
        self.queues: dict[str, deque[tuple[float, list[float]]]] = {name: deque() for name in service_s}
        self.finished = dict.fromkeys(service_s, 0)
        self.free_s = dict.fromkeys(service_s, 0.0)
        self.waits: list[list[float]] = []
        self.refused: list[Overloaded] = []
        self._next_read_s = 0.0
        self._rng = random.Random(seed)

    def run(self, rate: float, seconds: float, mix: Sequence[Sequence[str]]) -> None:
        end_s = self.now_s + seconds
        due_s = self.now_s
        while (due_s := due_s + self._rng.expovariate(rate)) < end_s:
            self._until(due_s)
            stages = self._rng.choice(mix)
            refused = self.gate.admit(stages)
            if refused:
                self.refused.append(refused)
                continue
            self.gate.leave(stages)
            waited: list[float] = []
            self.waits.append(waited)
            for name in stages:
                self.queues[name].append((self.now_s, waited))
        self._until(end_s)

    def _until(self, moment_s: float) -> None:
        while self._next_read_s <= moment_s:
            self._serve(self._next_read_s)
            self.now_s = self._next_read_s
            self.gate.read(self._reading)
            self._next_read_s += READ_S
        self._serve(moment_s)
        self.now_s = moment_s

    def _serve(self, moment_s: float) -> None:
        for name, queue in self.queues.items():
            while queue and max(self.free_s[name], queue[0][0]) <= moment_s:
                start_s = max(self.free_s[name], queue[0][0])
                taken = 0
                while queue and queue[0][0] <= start_s and taken < self.batch:
                    came_s, waited = queue.popleft()
                    waited.append(start_s - came_s)
                    taken += 1
                self.free_s[name] = start_s + taken * self.service_s[name]
                self.finished[name] += taken

    def _reading(self) -> dict[str, Queue]:
        return {name: Queue(len(queue), self.finished[name]) for name, queue in self.queues.items()}


SPEEDS = st.floats(0.0005, 0.3)  # seconds for one request: of a fast GPU to those of a laptop with a large model


@pytest.mark.long
@given(service_s=SPEEDS, storm=st.floats(1.5, 8), batch=st.sampled_from([1, 4, 8]), seed=st.integers(0, 99))
def test_in_any_storm_on_any_machine_the_work_goes_on_and_nobody_waits_long(
    service_s: float, storm: float, batch: int, seed: int
) -> None:
    played = Played({"encode_audio": service_s, "fuse": service_s / 20}, batch, seed)
    mix = [("encode_audio", "fuse")]
    played.run(storm / service_s, 40 * service_s + 1, mix)  # learns
    before = len(played.waits)
    seconds = 300 * service_s + 2
    played.run(storm / service_s, seconds, mix)
    answered = len(played.waits) - before
    assert answered >= 0.9 * seconds / service_s
    # What is being worked on isn't counted as waiting, and readings are as old as READ_S.
    bound_s = max(MAX_WAIT_S, LEAST_AHEAD * service_s)
    waits = sorted(max(waited) for waited in played.waits[before : before + answered] if waited)
    assert waits[int(0.99 * len(waits))] <= 1.5 * (bound_s + batch * service_s + READ_S)
    assert played.refused
    assert all(refused.code == "queue" and 0 < refused.retry_after_s <= 5 for refused in played.refused)


@given(service_s=SPEEDS, load=st.floats(0.05, 0.5), seed=st.integers(0, 99))
def test_below_saturation_nobody_is_refused(service_s: float, load: float, seed: int) -> None:
    """But in the first moments of a fast machine, which nobody knows to be one yet."""
    played = Played({"encode_audio": service_s, "fuse": service_s / 20}, 4, seed)
    played.run(load / service_s, 1.0, [("encode_audio", "fuse")])
    played.refused.clear()
    played.run(load / service_s, 500 * service_s, [("encode_audio", "fuse")])
    assert not played.refused


def test_a_subset_is_refused_for_its_own_stages_alone() -> None:
    played = Played({"encode_audio": 0.01, "encode_text": 0.001, "fuse": 0.0005})
    played.run(300, 2, [("encode_audio", "fuse")])
    assert played.gate.admit(("encode_audio", "fuse"))
    assert played.gate.admit(("encode_text", "fuse")) is None


def test_a_slower_mix_is_learned() -> None:
    played = Played({"encode_audio": 0.002, "fuse": 0.0001})
    played.run(1_000, 2, [("encode_audio", "fuse")])
    played.service_s["encode_audio"] = 0.02
    played.run(1_000, 3, [("encode_audio", "fuse")])
    before = len(played.waits)
    played.run(200, 3, [("encode_audio", "fuse")])
    assert max(waited[0] for waited in played.waits[before:] if waited) <= 1.5 * LEAST_AHEAD * 0.02


def gate_with(rate: float, waiting: int) -> tuple[Gate, list[float]]:
    """A gate that knows encode_text's rate and sees so many wait there; and its clock, to be set."""
    now = [0.0]
    gate = Gate("preprocess", STAGES, MAX_WAIT_S, lambda: now[0])
    for finished in (0, 100):
        now[0] += 100 / rate
        gate.read(lambda finished=finished: {"encode_text": Queue(waiting, finished)})  # type: ignore[misc]
    assert gate.admit(("encode_audio",)) is None  # it has just let somebody in
    return gate, now


def test_who_can_not_wait_so_long_is_refused_at_once() -> None:
    gate, _ = gate_with(rate=50, waiting=5)
    refused = gate.admit(("encode_text", "fuse"), left_s=0.05)
    assert refused is not None
    assert refused.code == "deadline"
    assert refused.retry_after_s == pytest.approx(0.1)
    assert gate.admit(("encode_text", "fuse"), left_s=0.5) is None


def test_whoever_left_no_longer_counts() -> None:
    gate, _ = gate_with(rate=50, waiting=0)
    admitted = 0
    while gate.admit(("encode_text", "fuse")) is None:
        admitted += 1
    assert admitted >= LEAST_AHEAD - 1
    for _ in range(admitted):
        gate.leave(("encode_text", "fuse"), onwards=False)
    assert gate.admit(("encode_text", "fuse")) is None


def test_without_readings_only_what_waits_here_counts() -> None:
    gate, _ = gate_with(rate=50, waiting=500)
    assert gate.admit(("encode_text", "fuse"))
    gate.lose_sight()
    assert gate.admit(("encode_text", "fuse")) is None


def test_a_queue_that_seems_stuck_is_tried_now_and_then() -> None:
    gate, now = gate_with(rate=50, waiting=500)
    tried = 0
    for _ in range(100):
        now[0] += PROBE_S / 10
        tried += gate.admit(("encode_text", "fuse")) is None
    assert 8 <= tried <= 10


def test_a_stage_that_was_loaded_anew_counts_from_zero() -> None:
    gate, now = gate_with(rate=50, waiting=5)
    now[0] += 1
    gate.read(lambda: {"encode_text": Queue(5, 0)})
    assert gate.admit(("encode_text", "fuse"), left_s=0.5) is None


def test_a_failed_reading_changes_nothing() -> None:
    gate, _ = gate_with(rate=50, waiting=500)

    def fails() -> dict[str, Queue]:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        gate.read(fails)
    assert gate.admit(("encode_text", "fuse"))
