"""Target: what an upgrade needs of whatever serves, be it one server or the pods of a Deployment."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from cmt_client import EmotionClient
from cmt_release.release import Release
from cmt_rollout.golden import Golden
from cmt_rollout.live_traffic import Counters, Traffic


class Target(Protocol):
    """One place that serves a release.

    Every method may be repeated, and looks at what is the case before it does something: at the server as well as at
    what is written down, of which either may have changed in the meantime. All raise cmt_client's ServiceErrors,
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

    def golden(self, number: int) -> Golden:
        """What a release is asked to prove itself here; who answers is all that can be told where it isn't at hand."""

    def counters(self) -> Counters:
        """What every model has counted by now."""

    def traffic(self, window: Counters, release: int, candidate: bool) -> Traffic:
        """How requests to a release fared between two moments, at the candidate's pipelines or at the live ones."""

    def flip(self, release: int, previous: int | None) -> None:
        """All pipelines answer from a release that lies here, its stages loaded first where they aren't."""

    def end_trial(self) -> None:
        """The candidate's pipelines go; its stages stay."""

    def retire(self, keep: tuple[int, ...], drain_s: float) -> str:
        """Unloads all releases but these and what still answers, once their requests in flight are answered; says what
        came of it."""
