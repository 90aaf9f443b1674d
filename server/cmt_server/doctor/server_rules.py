"""Traps of a running server, seen from what it tells."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cmt_server.doctor.finding import Finding, Rule, Severity, finding
from cmt_server.doctor.running import IndexEntry, Observation

NO_REASON = ("", "unloaded")  # of versions that are down because they were meant to be
MOST_NAMES = 10  # in one finding

CONTROL_OPEN = Rule(
    "model-control-open",
    "error",
    "Whoever reaches the port may load and unload models; a model is code that the server runs. A warning where the "
    "port was reached over loopback.",
    "Start Triton with --http-restricted-api=model-repository:NAME=TOKEN (and --grpc-restricted-protocol), or without "
    "explicit model control.",
)
SHARED_MEMORY_OPEN = Rule(
    "shared-memory-open",
    "error",
    "Whoever reaches the port may register memory regions of the server's machine and have requests read and write "
    "them. A warning where the port was reached over loopback.",
    "Start Triton with --http-restricted-api=shared-memory:NAME=TOKEN and --grpc-restricted-protocol alike.",
)
READINESS_POISONED = Rule(
    "readiness-poisoned",
    "warning",
    "/v2/health/ready is 400 though every model answers: one version that failed to load keeps it so until that very "
    "version loads, and an orchestrator takes a working server out of service.",
    "Probe /v2/models/NAME/ready, or start Triton with --strict-readiness=false; load or unload what failed.",
)
FAILED_VERSION = Rule(
    "failed-version",
    "error",
    "A version was asked for and couldn't be loaded. A warning where another version of the model answers meanwhile.",
    "Mend what the reason names and load the model again, or remove the version and unload it.",
)
STUCK_UNLOADING = Rule(
    "stuck-unloading",
    "warning",
    "A version that stays UNLOADING waits for requests in flight: long ones, or requests that a failed ensemble step "
    "leaked and that never end. Its memory isn't freed.",
    "If no client waits for an answer, restart the server; see refusal-beside-sibling for what leaks.",
)


def control_open(seen: Observation) -> Iterator[Finding]:
    if seen.control_open:
        what = "models can be loaded without a token"
        yield finding(CONTROL_OPEN, seen.url, "", what, _by_reach(seen))


def shared_memory_open(seen: Observation) -> Iterator[Finding]:
    if seen.shared_memory_open:
        what = "shared memory can be managed without a token"
        yield finding(SHARED_MEMORY_OPEN, seen.url, "", what, _by_reach(seen))


def _by_reach(seen: Observation) -> Severity:
    return "warning" if seen.local else "error"


def readiness_poisoned(seen: Observation) -> Iterator[Finding]:
    """Not while something loads: the server isn't ready then, and will be."""
    entries = seen.index or ()
    loading = any(entry.state == "LOADING" for entry in entries)
    if seen.ready or loading or not seen.models_ready or not all(seen.models_ready.values()):
        return
    down = [str(entry) for entry in entries if _failed(entry) or not entry.state]
    because = f"; not loaded: {_some(down)}" if down else ""
    what = f"all {len(seen.models_ready)} models that are loaded are ready, the server isn't{because}"
    yield finding(READINESS_POISONED, seen.url, "", what)


def failed_version(seen: Observation) -> Iterator[Finding]:
    entries = seen.index or ()
    for entry in (entry for entry in entries if _failed(entry)):
        others = [other.version for other in entries if other.name == entry.name and other.state == "READY"]
        meanwhile = f"; version {_some(others)} answers" if others else "; no other version answers"
        what = f"{entry} failed{meanwhile}: {entry.reason}"
        yield finding(FAILED_VERSION, seen.url, entry.name, what, "warning" if others else "error")


def stuck_unloading(seen: Observation) -> Iterator[Finding]:
    for entry in seen.stuck:
        yield finding(STUCK_UNLOADING, seen.url, entry.name, f"version {entry.version} stays UNLOADING")


def _failed(entry: IndexEntry) -> bool:
    return entry.state == "UNAVAILABLE" and entry.reason not in NO_REASON


def _some(names: list[str]) -> str:
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


CHECKS: dict[Rule, Callable[[Observation], Iterator[Finding]]] = {
    CONTROL_OPEN: control_open,
    SHARED_MEMORY_OPEN: shared_memory_open,
    READINESS_POISONED: readiness_poisoned,
    FAILED_VERSION: failed_version,
    STUCK_UNLOADING: stuck_unloading,
}
