"""Published faults of tritonserver that whoever reaches a port can use, by the release that fixes them.

Sources: NVIDIA's security bulletins 5687 (August 2025), 5734 (December 2025) and 5828 (May 2026); the pull requests of
triton-inference-server/server that are named. A release has two names: that of its container (26.09) and that which the
server tells (2.73).
"""

from __future__ import annotations

from dataclasses import dataclass

TritonVersion = tuple[int, int]


@dataclass(frozen=True)
class Advisory:
    """fixed: the first version that is known to be whole, and `container`, that of its image."""

    names: tuple[str, ...]
    what: str
    fixed: TritonVersion
    container: str


ADVISORIES = (
    Advisory(
        ("CVE-2025-23310", "CVE-2025-23311"),
        "a body in many small chunks overruns the stack of the HTTP service (server PR #8305)",
        (2, 60),  # 25.07 has it too, and tells the same two numbers as 25.06
        "25.08",
    ),
    Advisory(
        ("CVE-2025-23319", "CVE-2025-23320", "CVE-2025-23334"),
        "the python backend's shared memory can be read and written through requests, up to running code",
        (2, 60),
        "25.08",
    ),
    Advisory(
        ("CVE-2025-33201", "CVE-2025-33211"),
        "requests of unusual size or content end the server (server PR #8432)",
        (2, 62),
        "25.10",
    ),
    Advisory(
        ("CVE-2026-24206", "CVE-2026-24207"),
        "authentication can be gone around, up to running code: a token doesn't protect model control",
        (2, 67),
        "26.03",
    ),
    Advisory(
        ("CVE-2026-24208", "CVE-2026-24209", "CVE-2026-24215"),
        "paths lead out of their folder; requests exhaust the server",
        (2, 67),
        "26.03",
    ),
)

#: What a server that strangers reach should run, and the version that it tells.
CURRENT_CONTAINER = "nvcr.io/nvidia/tritonserver:26.09-py3"
CURRENT_VERSION: TritonVersion = (2, 73)


def open_advisories(version: TritonVersion | None) -> tuple[Advisory, ...]:
    """Those that a version isn't known to be free of; all of them when it is unknown."""
    return tuple(found for found in ADVISORIES if version is None or version < found.fixed)
