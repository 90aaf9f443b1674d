"""What can go wrong with an upgrade.

RolloutError
├── StepFailed      a step found a reason against the release; `step`, `target` and `reason` say which
├── RollbackFailed  a release was rejected and the rollback failed too: somebody must look
├── Ended           somebody ended the driver, or nobody reads its report any more; all was led back before
├── TrainingFailed  a training's Job came to an end without a checkpoint
└── ClusterError    a Kubernetes API server refuses, or can't be reached; has `status`, its HTTP code
    ├── ApplyConflict   others own the fields; `managers` names them
    └── Stuck           a rollout on the cluster doesn't come to its end
"""

from __future__ import annotations


class RolloutError(RuntimeError):
    """Anything that ends an upgrade or a rollback."""


class StepFailed(RolloutError):
    """A step rejected the release; the reason is meant for people."""

    def __init__(self, step: str, target: str, reason: str) -> None:
        super().__init__(f"{step} on {target}: {reason}")
        self.step, self.target, self.reason = step, target, reason


class RollbackFailed(RolloutError):
    """The old release couldn't be brought back everywhere; the message names the targets."""


class Ended(RolloutError):
    """Nobody waits for the end of it any more; what was begun has been led back."""


class TrainingFailed(RolloutError):
    """A training on the cluster failed; the message has its pods' reasons."""


class ClusterError(RolloutError):
    """The API server refused or didn't answer. status: its HTTP code, None where there was no answer."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class ApplyConflict(ClusterError):
    """Fields that we would set belong to other field managers."""

    def __init__(self, message: str, managers: tuple[str, ...]) -> None:
        super().__init__(message, 409)
        self.managers = managers


class Stuck(ClusterError):
    """Pods don't get ready, and the message says why."""
