"""tuning.json: how each stage runs on one machine, as `cmt tune` found it and `cmt serve` takes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cmt_pipeline.stages import STAGES
from cmt_pipeline.triton_config import StageTuning
from cmt_release.durable import replace_file
from cmt_release.typed_json import parsed, typed

TUNING_FILE = "tuning.json"
MOST_INSTANCES, MOST_THREADS, MOST_DELAY_US, MOST_NICENESS = 64, 1024, 1_000_000, 19


@dataclass(frozen=True)
class _Stored:
    stages: Mapping[str, StageTuning]


def read_tuning(path: Path) -> dict[str, StageTuning]:
    """Of every stage that the file names. ValueError for what isn't such a file, or can't be run."""
    try:
        values = parsed(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} isn't JSON ({error}); write it again with `cmt tune`") from None
    stages = dict(
        typed(_Stored, {"stages": values.get("stages")} if isinstance(values, dict) else {}, str(path)).stages
    )
    if unknown := sorted(stages.keys() - STAGES.keys()):
        raise ValueError(f"{path} names {', '.join(unknown)}; expected stages: {', '.join(STAGES)}")
    for name, tuning in stages.items():
        for what, most, least in (("instances", MOST_INSTANCES, 1), ("threads", MOST_THREADS, 0)):
            _within(path, name, what, getattr(tuning, what), least, most)
        _within(path, name, "queue_delay_us", tuning.queue_delay_us, 0, MOST_DELAY_US)
        _within(path, name, "niceness", tuning.niceness, 0, MOST_NICENESS)
    return stages


def write_tuning(path: Path, stages: Mapping[str, StageTuning], **more: Any) -> None:
    """more: what it was measured with, for whoever reads the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {"stages": {name: asdict(tuning) for name, tuning in stages.items()}} | more
    replace_file(path, (json.dumps(values, indent=1) + "\n").encode(), path.parent)


def _within(path: Path, stage: str, what: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise ValueError(f"{path}: {what} of {stage}: got {value}; expected {least} to {most}")
