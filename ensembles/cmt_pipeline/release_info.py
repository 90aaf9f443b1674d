"""What an answer's release is, as the pipelines themselves say it.

The version number of a pipeline is the number of the release that it serves. Its Triton configuration carries one
parameter `release_{N}` for each release it may answer from, so that whoever holds an answer of version N can name its
labels without asking anyone but the server.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

PREFIX = "release_"

#: Parameter of the live pipelines: the release that they answered from before.
PREVIOUS_RELEASE = "previous_release"
#: Parameter of a candidate's pipelines: the share of requests that clients should send there, from 0 to 1.
CANARY_SHARE = "canary_share"


@dataclass(frozen=True)
class ReleaseInfo:
    """The facts of a release that travel with its answers."""

    release: int
    label_set: str
    labels: tuple[str, ...]
    preset: str
    engine: str
    precision: str
    trained: bool

    def to_parameter(self) -> tuple[str, str]:
        return f"{PREFIX}{self.release}", json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> dict[int, ReleaseInfo]:
        """Every release that a pipeline's parameters name, by number."""
        found = {}
        for key, text in parameters.items():
            if key.startswith(PREFIX):
                values = json.loads(text)
                info = cls(**{**values, "labels": tuple(values["labels"])})
                found[info.release] = info
        return found
