"""tuning.json: read strictly, written whole, and taken by the stages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cmt_pipeline.triton_config import StageTuning
from cmt_server.tuning import read_tuning, write_tuning

STAGES = {"encode_image": StageTuning(2, 1, 200), "fuse": StageTuning(1, 0, 0)}

GOOD = {"instances": 1, "threads": 0, "queue_delay_us": 0, "niceness": 0}


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write_tuning(tmp_path / "new" / "tuning.json", STAGES, slo_ms=128.0, trials=[{"any": "thing"}])
    assert read_tuning(tmp_path / "new" / "tuning.json") == STAGES
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["tuning.json"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("{", "isn't JSON"),
        ([], "stages"),
        ({}, "stages"),
        ({"stages": {"encode_smell": GOOD}}, "encode_smell.*expected"),
        ({"stages": {"fuse": GOOD | {"instances": 0}}}, "instances of fuse.*0; expected 1"),
        ({"stages": {"fuse": GOOD | {"threads": -1}}}, "threads of fuse"),
        ({"stages": {"fuse": GOOD | {"queue_delay_us": 10**9}}}, "queue_delay_us of fuse"),
        ({"stages": {"fuse": GOOD | {"niceness": 20}}}, "niceness of fuse"),
        ({"stages": {"fuse": GOOD | {"instances": 1.5}}}, "instances"),
        ({"stages": {"fuse": {"instances": 1, "threads": 0}}}, "lacks niceness, queue_delay_us"),
    ],
)
def test_what_cant_be_run_is_named(values: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    with pytest.raises(ValueError, match=f"(?s){message}"):
        read_tuning(path)
