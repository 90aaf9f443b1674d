"""Trainings beside each other end early where one fails."""

from __future__ import annotations

import operator
import time
from concurrent.futures import as_completed

import pytest

from cmt_training.processes import processes


def divide_and_sleep() -> None:
    with processes(1) as pool:
        jobs = [pool.submit(operator.truediv, 1, 0), *(pool.submit(time.sleep, 1) for _ in range(100))]
        for job in as_completed(jobs):
            job.result()


def test_a_failure_is_told_before_all_others_have_run() -> None:
    start = time.monotonic()
    with pytest.raises(ZeroDivisionError):
        divide_and_sleep()
    assert time.monotonic() - start < 50
