"""What can go wrong with an upgrade.

RolloutError
├── StepFailed      a step found a reason against the release; `step`, `target` and `reason` say which
└── RollbackFailed  a release was turned down and the way back failed too: somebody must look
"""

from __future__ import annotations


class RolloutError(RuntimeError):
    """Anything that ends an upgrade or a rollback."""


class StepFailed(RolloutError):
    """A step said no. What it says is meant for people."""

    def __init__(self, step: str, target: str, reason: str) -> None:
        super().__init__(f"{step} on {target}: {reason}")
        self.step, self.target, self.reason = step, target, reason


class RollbackFailed(RolloutError):
    """The old release couldn't be brought back everywhere; the message names the targets."""
