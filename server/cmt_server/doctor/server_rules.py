"""Traps of a running server, seen from what it tells."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cmt_server.advisories import CURRENT_CONTAINER, open_advisories
from cmt_server.doctor.finding import Finding, Rule, Severity, finding
from cmt_server.doctor.running import IndexEntry, Observation

NO_REASON = ("", "unloaded")  # of versions that are down because they were meant to be
MOST_NAMES = 10  # in one finding
LEAST_STACK_BYTES = 128 << 20  # two copies of a body of 64 MB, what a current Triton lets in by default
SEEN_TO_CRASH = (2, 51)

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


VULNERABLE = Rule(
    "published-vulnerabilities",
    "error",
    "This Triton isn't known to be free of published vulnerabilities: whoever reaches a port may end the server, read "
    "its memory or run code. A warning where it listens on loopback alone.",
    f"Run {CURRENT_CONTAINER} or later; until then listen on 127.0.0.1, behind a proxy that bounds bodies and undoes "
    "chunks.",
)
FORM_BODY = Rule(
    "form-body-crash",
    "error",
    "A body that calls itself a form (curl's default), on any path and without a token, is copied to the stack twice; "
    "from half a thread's stack on, 4 MB by default, the server dies of a segmentation fault (triton-inference-server/"
    "server#5840, open). A warning where it listens on loopback alone, or its stack limit can't be seen.",
    "Start Triton with a larger stack, as `cmt serve` does: ulimit -s 4194304, or --ulimit stack=4294967296 of a "
    "container; a proxy that bounds bodies helps too.",
)
TOKEN_SHOWN = Rule(
    "token-in-command-line",
    "warning",
    "Triton takes the keys of restricted APIs on its command line alone, which every user of the machine may read; "
    "with them they load models, which is running code.",
    "Let no other users on the machine, mount /proc with hidepid=2, or start Triton by `cmt serve`, which hides them.",
)
EVERYWHERE = Rule(
    "listens-everywhere",
    "warning",
    "Triton listens on every address of the machine by default: HTTP, gRPC and metrics are for all who reach it, and "
    "inference has no login.",
    "Start Triton with --http-address=127.0.0.1, --grpc-address and --metrics-address alike; or let a firewall or a "
    "network policy choose who reaches the ports.",
)


def vulnerable(seen: Observation) -> Iterator[Finding]:
    for fault in open_advisories(seen.version) if seen.version else ():
        names = ", ".join(fault.names)
        what = f"{names}: {fault.what}; fixed in {fault.fixed[0]}.{fault.fixed[1]} ({fault.container})"
        yield finding(VULNERABLE, seen.url, "", what, _by_reach(seen))


def form_body(seen: Observation) -> Iterator[Finding]:
    if seen.process is None:
        if seen.version and seen.version <= SEEN_TO_CRASH:
            yield finding(FORM_BODY, seen.url, "", "its stack limit can't be seen from here", "warning")
    elif seen.process.stack_bytes < LEAST_STACK_BYTES:
        largest = seen.process.stack_bytes / 2e6
        what = f"process {seen.process.number} dies of form bodies from about {largest:.0f} MB on"
        yield finding(FORM_BODY, seen.url, "", what, _by_reach(seen))


def token_shown(seen: Observation) -> Iterator[Finding]:
    if seen.process and seen.process.secrets:
        what = f"process {seen.process.number} shows the value of {' and '.join(seen.process.secrets)}"
        yield finding(TOKEN_SHOWN, seen.url, "", what)


def everywhere(seen: Observation) -> Iterator[Finding]:
    if seen.process and seen.process.everywhere:
        ports = ", ".join(map(str, seen.process.everywhere))
        yield finding(EVERYWHERE, seen.url, "", f"process {seen.process.number}: ports {ports}")


def control_open(seen: Observation) -> Iterator[Finding]:
    if seen.control_open:
        what = "models can be loaded without a token"
        yield finding(CONTROL_OPEN, seen.url, "", what, _by_reach(seen))


def shared_memory_open(seen: Observation) -> Iterator[Finding]:
    if seen.shared_memory_open:
        what = "shared memory can be managed without a token"
        yield finding(SHARED_MEMORY_OPEN, seen.url, "", what, _by_reach(seen))


def _by_reach(seen: Observation) -> Severity:
    """An error where others reach the server too."""
    others = not seen.local or (seen.process is not None and bool(seen.process.everywhere))
    return "error" if others else "warning"


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
    VULNERABLE: vulnerable,
    FORM_BODY: form_body,
    TOKEN_SHOWN: token_shown,
    EVERYWHERE: everywhere,
    CONTROL_OPEN: control_open,
    SHARED_MEMORY_OPEN: shared_memory_open,
    READINESS_POISONED: readiness_poisoned,
    FAILED_VERSION: failed_version,
    STUCK_UNLOADING: stuck_unloading,
}
