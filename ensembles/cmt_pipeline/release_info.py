"""What an answer's release is, as the answer itself says it.

Each answer carries a tensor `release`: one JSON object an item, made by the stage that a request meets first, which is
never shared between releases. The configuration of a pipeline names the same object in its parameter `release`, for
whoever asks what is served rather than for an answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from cmt_pipeline.modality import MODALITIES, Modality, ordered

#: Parameter of a pipeline: the release that it answers from, as `ReleaseStamp.to_json` writes it.
RELEASE = "release"
#: Parameter of the live pipelines: the release that they answered from before.
PREVIOUS_RELEASE = "previous_release"
#: Parameter of a candidate's pipelines: the share of requests that clients should send there, from 0 to 1.
CANARY_SHARE = "canary_share"
#: File beside the adapter of a stage that says its release: the same JSON object.
STAMP_FILE = "release.json"


@dataclass(frozen=True)
class ReleaseInfo:
    """The facts of a release that whoever reads its answers needs.

    modalities: those that it has an encoder for; others are refused. valence_arousal: whether it reads them; where it
    doesn't, its answers hold zeros that mean nothing.
    """

    release: int
    label_set: str
    labels: tuple[str, ...]
    preset: str
    engine: str
    precision: str
    trained: bool
    modalities: tuple[Modality, ...] = MODALITIES
    valence_arousal: bool = True


@dataclass(frozen=True)
class ReleaseStamp(ReleaseInfo):
    """The same with the release's digest: what travels with an answer."""

    digest: str = field(kw_only=True)

    @classmethod
    def of(cls, info: ReleaseInfo, digest: str) -> ReleaseStamp:
        return cls(**vars(info), digest=digest)

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> ReleaseStamp:
        """ValueError for anything else than a stamp."""
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError(f"got {type(values).__name__}; expected a JSON object")
        try:
            read: tuple[Modality, ...] = ordered(values["modalities"])
            stamp = cls(**{**values, "labels": tuple(map(str, values["labels"])), "modalities": read})
            _check(stamp)
        except (KeyError, TypeError) as error:
            raise ValueError(f"got a release with other fields ({error}); is it of this version?") from None
        return stamp

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> ReleaseStamp | None:
        """The release that a pipeline's parameters name, if they do. ValueError where that can't be read."""
        return cls.from_json(parameters[RELEASE]) if RELEASE in parameters else None


def _check(stamp: ReleaseStamp) -> None:
    texts: tuple[Any, ...] = (stamp.label_set, stamp.preset, stamp.engine, stamp.precision, stamp.digest)
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("a name that is no text")
    if not isinstance(stamp.release, int) or not all(
        isinstance(said, bool) for said in (stamp.trained, stamp.valence_arousal)
    ):
        raise TypeError("release is no number, or trained or valence_arousal neither true nor false")
