"""Target: what an upgrade needs of whatever serves, be it one server or the pods of a Deployment."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from cmt_client import EmotionClient
from cmt_release.release import Release


@dataclass(frozen=True)
class Traffic:
    """Requests since the server started, over all pipelines of one kind, live or on trial."""

    answered: int
    failed: int

    def since(self, before: Traffic) -> Traffic:
        """What came since; counts start again when a pipeline is loaded anew."""
        return Traffic(max(0, self.answered - before.answered), max(0, self.failed - before.failed))

    @property
    def failing(self) -> float:
        """The share that failed."""
        return self.failed / max(1, self.answered + self.failed)


class Target(Protocol):
    """One place that serves a release.

    Every method may be repeated: what is done already is passed over. All raise cmt_client's ServiceErrors,
    cmt_server's ServerErrors, cmt_export's ReleaseErrors, ClusterErrors and OSErrors; an upgrade takes any of them
    as a no.
    """

    @property
    def name(self) -> str:
        """For people."""

    def lock(self) -> AbstractContextManager[None]:
        """Held throughout; RepositoryBusy if another upgrade is at work."""

    def recover(self, wanted: int) -> str:
        """Finishes or undoes what a driver that was killed left behind; says what.

        What is loaded of release `wanted` may stay.
        """

    def live(self) -> int:
        """The release that takes the traffic."""

    def previous(self) -> int | None:
        """The release that took it before, if known."""

    def resident(self) -> tuple[int, ...]:
        """The releases that are loaded, or lie ready to be."""

    def preflight(self, release: Release) -> list[str]:
        """Reasons why the release can't run here; empty if it can."""

    def load(self, release: Release) -> None:
        """Loads its stages beside those that run, and its pipelines under the names of a candidate."""

    def share(self, release: Release, canary_share: float) -> None:
        """Lets clients that follow it send this share of their requests to the candidate."""

    def client(self, candidate: bool) -> EmotionClient:
        """Asks the candidate, or the live release; retries nothing."""

    def traffic(self, candidate: bool) -> Traffic:
        """How the candidate's pipelines, or the live ones, did."""

    def flip(self, release: int, previous: int | None) -> None:
        """All pipelines answer from a release that is loaded; back once every one of them does."""

    def end_trial(self) -> None:
        """The candidate's pipelines go; its stages stay."""

    def retire(self, keep: tuple[int, ...], drain_s: float) -> str:
        """Unloads all releases but these, once their requests in flight are answered; says what came of it."""
