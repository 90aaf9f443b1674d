"""What a comparison of models over several seeds found."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cmt_release.typed_json import parsed, typed
from cmt_training.statistics import Claim, Difference, Interval


@dataclass(frozen=True)
class Comparison:
    """models: each one's metrics by name; differences: CMT minus each baseline; verdict: the paper's claims against the
    strongest baseline of a measure.
    """

    data: str
    preset: str
    seeds: tuple[int, ...]
    method: str
    models: Mapping[str, Mapping[str, Interval]]
    fusion_parameters: Mapping[str, int]
    differences: Mapping[str, Difference]
    verdict: Mapping[str, Claim]
    conditions: Mapping[str, Any]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Comparison:
        """ValueError for what isn't one."""
        values = parsed(text)
        known = values.pop("conditions", {})
        found = typed(_Stored, values, "comparison")
        return cls(**{name: getattr(found, name) for name in _Stored.__dataclass_fields__}, conditions=known)


@dataclass(frozen=True)
class _Stored:
    """What of a Comparison has a type throughout."""

    data: str
    preset: str
    seeds: tuple[int, ...]
    method: str
    models: Mapping[str, Mapping[str, Interval]]
    fusion_parameters: Mapping[str, int]
    differences: Mapping[str, Difference]
    verdict: Mapping[str, Claim]
