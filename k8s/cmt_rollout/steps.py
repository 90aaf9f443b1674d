"""StepRun: one step on one target, reported to whoever follows the upgrade."""

from __future__ import annotations

import time
from collections.abc import Callable

from cmt_client import EmotionError
from cmt_release.release import ReleaseError
from cmt_rollout.errors import ClusterError, StepFailed
from cmt_rollout.options import Event, Report, State, Step
from cmt_server.errors import ServerError

#: What a target may raise; any of it fails the step.
FAULTS = (EmotionError, ServerError, ReleaseError, ClusterError, OSError)


class StepRun:
    """One step on one target: reported when it starts and ends, its errors turned into StepFailed."""

    def __init__(self, report: Report, name: Step, target: str) -> None:
        self._report, self._name, self._target = report, name, target
        self._start = time.monotonic()

    def run(self, work: Callable[[], str]) -> None:
        self.tell("started")
        try:
            detail = work()
        except FAULTS as error:
            self.tell("failed", str(error))
            raise StepFailed(self._name, self._target, str(error)) from error
        except StepFailed as error:
            self.tell("failed", error.reason)
            raise
        self.tell("passed", detail)

    def tell(self, state: State, detail: str = "") -> None:
        seconds = time.monotonic() - self._start
        self._report(Event(self._name, self._target, state, detail, seconds))
