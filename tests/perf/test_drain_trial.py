"""A server that is stopped under load loses nothing that it let in."""

from __future__ import annotations

from pathlib import Path

import pytest

from cmt_cli.state import State
from cmt_perf.drain_trial import drained
from cmt_perf.traffic import Asked
from cmt_release.release import Release


@pytest.mark.triton
@pytest.mark.slow
def test_stopping_after_an_upgrade_loses_nothing(
    tinies: tuple[Release, Release], tiny_state: State, tmp_path: Path
) -> None:
    """Under closed loops. Whether much is in flight is up to chance here; tests/server/test_draining.py sees to it."""
    result = drained(tinies, upgrades=1, loops=32, folder=tmp_path, state=tiny_state.root)
    assert (result.lost, result.failed, result.first_errors) == (0, 0, ())
    assert result.refused > 0


@pytest.mark.parametrize(
    ("error", "due_s", "counted"),
    [
        ("", 1.0, (0, 0, 0)),
        ("ServerUnavailable: …: draining: …", 1.0, (0, 1, 0)),
        ("Overloaded: …: got a request that would wait …", 1.0, (0, 1, 0)),
        ("ServerUnavailable: … Server is stopping, scheduler for model has stopped accepting", 1.0, (1, 0, 0)),
        ("ServerUnavailable: … Server is stopping, scheduler for model has stopped accepting", 3.0, (0, 1, 0)),
        ("UnknownPipeline: … has no available versions", 3.0, (0, 0, 1)),
    ],
)
def test_what_counts_as_lost(error: str, due_s: float, counted: tuple[int, int, int]) -> None:
    from cmt_perf.drain_trial import judged

    asked = [Asked("closed", "grpc", 0, due_s, 4.0, error=error)]
    result = judged(asked, before=2.0, upgrades=0, loops=1, seconds=1.0)
    assert (result.lost, result.refused, result.failed) == counted
