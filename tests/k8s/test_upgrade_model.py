"""Upgrades in a world where anything may fail at any point: what is reported was shown, and all ends whole."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from cmt_rollout import rollout
from cmt_rollout.target import Target
from upgrade_model import BAD, GOES_ON, KINDS, Fault, World, explore, worlds

KEEP = replace(GOES_ON, keep=True)
MEMORY = Path("/dev/shm")
SLOW = pytest.mark.slow
FAULTS = st.lists(st.builds(Fault, st.integers(1, 320), st.sampled_from(KINDS)), max_size=2)


@pytest.fixture(scope="module")
def fresh() -> Iterator[Callable[[], World]]:
    with (
        tempfile.TemporaryDirectory(prefix="upgrade-model-", dir=MEMORY if MEMORY.is_dir() else None) as folder,
        worlds(Path(folder)) as made,
    ):
        yield made


def upgraded(world: World, faults: Sequence[Fault]) -> str:
    return world.upgrade(2, faults)


def rolled_back(world: World, faults: Sequence[Fault]) -> str:
    assert world.upgrade(2, options=KEEP) == "passed"
    return world.rollback(faults)


def way_back(fresh: Callable[[], World]) -> list[Fault]:
    """A fault after which an upgrade leads back: our own first request of the watch finds nobody."""
    world = fresh()
    seen: list[int] = []
    world.told = lambda event: seen.append(len(world.points)) if event.step == "watch" else None
    upgraded(world, ())
    return [Fault(seen[0] + 1, "lost before")]


@pytest.mark.long
def test_without_faults(fresh: Callable[[], World]) -> None:
    world = fresh()
    assert world.upgrade(2) == "passed"
    assert world.upgrade(4) == "StepFailed"  # NaN
    assert world.upgrade(5) == "StepFailed"  # doesn't load
    assert world.upgrade(3, options=KEEP) == "passed"
    assert world.rollback() == "passed"
    world.settle()
    assert world.upgrade(1) == "passed"
    world.settle()


@pytest.mark.long
@pytest.mark.parametrize("share", [pytest.param(1, marks=SLOW, id="all"), pytest.param(29, id="some")])
@pytest.mark.parametrize("what", ["upgrade", "rollback", "way back"])
def test_a_fault_at_any_point(
    fresh: Callable[[], World], what: str, share: int, record_property: Callable[[str, object], None]
) -> None:
    """On the way back it is the second one. All: some 1,700 + 400 + 700 faults, a few minutes of a core."""
    drive, first = (rolled_back if what == "rollback" else upgraded), (way_back(fresh) if what == "way back" else [])
    points, faults = explore(fresh, drive, first, share)
    record_property("points, faults", (points, faults))
    assert faults > 3 * points / share


def test_it_finds_a_way_back_that_believes_the_disk(
    fresh: Callable[[], World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it once was: where the link says that the old release is live again, nothing was loaded any more."""

    def back_on(move: rollout._Move, target: Target) -> str:
        before = move.before[target.name]
        if target.live() != before.release:
            target.flip(before.release, before.previous)
        target.end_trial()
        target.retire((before.release,), 1.0)
        return f"release {before.release} has all traffic, as before"

    monkeypatch.setattr(rollout._Move, "_back_on", back_on)
    monkeypatch.setattr(World, "_seen", lambda *_: None)  # it asked nobody; but let it show what became of traffic
    first, world = way_back(fresh), fresh()
    upgraded(world, first)
    loads = [at for at, point in enumerate(world.points, 1) if at > first[0].at and "LoadModel emotion" in point]
    with pytest.raises(AssertionError, match=r"'emotion': 1, .*: 2.*release 1 has all traffic, as before"):
        upgraded(fresh(), [*first, Fault(loads[6], "lost before")])


class Operations(RuleBasedStateMachine):
    """Upgrades, rollbacks and deaths in any order, with up to two faults each."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    @rule(number=st.integers(1, 5), keep=st.booleans(), faults=FAULTS)
    def upgrade(self, number: int, keep: bool, faults: list[Fault]) -> None:
        said = self.world.upgrade(number, faults, KEEP if keep else GOES_ON)
        assert said != "passed" or number not in BAD

    @rule(faults=FAULTS)
    def rollback(self, faults: list[Fault]) -> None:
        self.world.rollback(faults)

    @rule()
    def the_server_dies(self) -> None:
        self.world.triton.die()

    @rule()
    def settle(self) -> None:
        self.world.settle()

    @invariant()
    def traffic_is_where_it_may_be(self) -> None:
        self.world.look_after()
        self.world.check_traffic()

    def teardown(self) -> None:
        self.world.settle()


@pytest.mark.long
@pytest.mark.parametrize("examples", [pytest.param(400, marks=SLOW, id="many"), pytest.param(12, id="few")])
def test_any_order_of_operations(fresh: Callable[[], World], examples: int) -> None:
    run_state_machine_as_test(
        lambda: Operations(fresh()),
        settings=settings(max_examples=examples, stateful_step_count=8, deadline=None, derandomize=examples < 100),
    )
