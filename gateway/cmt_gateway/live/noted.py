"""What is counted and audited of a live session: decisions and times, nothing of what a person said or showed."""

from __future__ import annotations

from dataclasses import dataclass

from cmt_client.result import Emotion
from cmt_gateway.audit import Audit
from cmt_gateway.metrics import Metrics
from cmt_session.session import Step


@dataclass(frozen=True)
class Noted:
    """Of one session. policy: its name, empty for none."""

    metrics: Metrics
    audit: Audit | None
    session: str
    caller: str
    context: str
    policy: str

    def turn(self, seconds: float) -> None:
        self.metrics.turn_seconds.observe(seconds)

    def not_answered(self, code: str) -> None:
        """A turn, a picture or a message, by the code of its `Refused`."""
        self.metrics.not_answered(code)

    def dropped(self) -> None:
        self.metrics.dropped.inc()

    def step(self, step: Step, answer: Emotion | None) -> None:
        """An answer that was taken in, or none, and what was decided after it: what is done is audited."""
        self.metrics.states.labels(step.reading.standing).inc()
        decision = step.decision
        if decision is None or decision.action is None:
            return
        self.metrics.actions.labels(self.policy, decision.action).inc()
        if self.audit is not None:
            self.audit.write(
                session=self.session,
                caller=self.caller,
                context=self.context,
                policy=self.policy,
                action=decision.action,
                rule=decision.rule,
                why=decision.why,
                hand_off_to=decision.hand_off_to,
                release=answer and answer.release,
                digest=answer and answer.digest,
            )
