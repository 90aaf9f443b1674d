"""The soak: what it calls lost, and a minute of it on a real server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cmt_cli.state import State
from cmt_perf.soak import RESULT, Reading, failures, of_one_server, slope, soak
from cmt_perf.traffic import Asked, Outcome
from cmt_release.release import Release

ROOT = Path(__file__).parents[2]


def asked(due_s: float, error: str = "", bad: bool = False) -> Asked:
    return Asked("closed", "grpc", 0, due_s, due_s + 0.5, error=error, bad=bad)


def reading(s: float, memory_mb: float, server: int = 1, stage_kills: int = 0) -> Reading:
    return Reading(s, server, stage_kills, memory_mb, 10, 20, 30 + 36 * stage_kills, 4, 50, 60)


def test_what_failed_in_an_outage_is_told_from_what_was_lost() -> None:
    outcome = Outcome(
        (
            asked(0.0),
            asked(9.8, "ServerUnavailable: gone"),  # overlaps the outage
            asked(20.5, "Overloaded: 40 waiting"),
            asked(21.0, "InvalidInput: no sound", bad=True),
            asked(22.0, "InvalidInput: no sound"),  # of a sound file
            asked(23.0, "ServerUnavailable: gone"),
            asked(24.0, "ServerUnavailable: failed to connect to all addresses"),
        ),
        sent=8,
    )
    found = failures(outcome, [(10.0, 20.0)])
    assert (found["failed_in_outages"], found["refused_as_too_many"], found["lost_beyond_kills"]) == (1, 1, 3)
    assert found["turned_away_after_outages"] == 1
    assert found["first_lost"] == ["InvalidInput: no sound", "ServerUnavailable: gone"]


def test_growth_is_told_from_a_spike_and_of_the_last_server_alone() -> None:
    readings = [
        reading(0, 900, server=1),
        *(reading(60 * n, 500 + n + 300 * (n == 7), server=2, stage_kills=n // 9) for n in range(20)),
    ]
    steady = of_one_server(readings)
    assert len(steady) == 20
    assert slope(steady, "memory_mb")["per_hour"] == 60
    assert slope(steady, "threads") == {
        "per_stage_kill": 36,
        "per_hour": 0,
        "low": 0,
        "high": 0,
        "first": 30,
        "last": 102,
    }


@pytest.mark.slow
@pytest.mark.triton
def test_a_minute_of_everything_loses_nothing(
    tinies: tuple[Release, Release], tiny_state: State, tmp_path: Path
) -> None:
    result = soak(tinies, tmp_path, tiny_state.root, seconds=60, seed=1)
    assert result["answers"] > 100
    assert (result["wrong"], result["lost_beyond_kills"], result["left_in_flight"]) == (0, 0, 0), result["first_lost"]
    assert result["left_regions"] == []
    assert len(result["events"]) > 1


def test_the_page_says_what_was_measured() -> None:
    found = json.loads((ROOT / RESULT).read_text())
    page = " ".join((ROOT / "docs" / "operations.md").read_text().split())
    assert found["seconds"] >= 1800
    assert f"{found['answers']:,} answers, {found['wrong']} wrong, {found['lost_beyond_kills']} lost" in page
    assert f"the outages of {found['kills']} kills ({found['failed_in_outages']} requests failed in those)" in page
    assert f"{found['kinds_of_events']['upgrade']} upgrades" in page
    slopes = found["slopes"]
    assert f"keeps {slopes['threads']['per_stage_kill']:.0f} threads, one descriptor" in page
    assert slopes["server_descriptors"] | {"first": 0, "last": 0} == {
        "per_stage_kill": 1,
        "per_hour": 0,
        "low": 0,
        "high": 0,
        "first": 0,
        "last": 0,
    }
    assert f"memory grows by {slopes['memory_mb']['per_hour']:.0f} MiB an hour" in page
