"""Traces of Triton, read; the real server writes one in test_bench.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cmt_perf.bench.attribution import attribution, read_trace


def request(first: int, start_ms: float, steps: dict[str, tuple[float, float, float]], end_ms: float) -> list[object]:
    """Rows as Triton writes them: names and times apart. steps: queued, started, ended in ms."""

    def stamps(names: list[str], times: list[float]) -> list[dict[str, object]]:
        return [{"name": n, "ns": int(t * 1e6)} for n, t in zip(names, times, strict=True)]

    rows: list[object] = [{"id": first, "model_name": "emotion", "model_version": 1}]
    rows.append({"id": first, "timestamps": stamps(["REQUEST_START", "REQUEST_END"], [start_ms, end_ms])})
    for number, (name, times) in enumerate(steps.items(), first + 1):
        rows.append({"id": number, "model_name": name, "model_version": 1, "parent_id": first})
        rows.append({"id": number, "timestamps": stamps(["QUEUE_START", "COMPUTE_START", "COMPUTE_END"], list(times))})
    return rows


STEPS = {
    "preprocess": (10.1, 10.2, 14.2),
    "encode_image": (14.3, 14.5, 34.5),
    "encode_audio": (14.3, 14.6, 64.6),
    "encode_text": (14.3, 20.0, 30.0),
    "fuse": (64.8, 65.0, 68.0),
}


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    later = {name: tuple(t + 100 for t in times) for name, times in STEPS.items()}
    rows = request(20, 110.0, later, 168.5) + request(1, 10.0, STEPS, 68.5)  # type: ignore[arg-type]
    rows += [{"id": 90, "model_name": "emotion_text"}, {"id": 91, "model_name": "fuse", "parent_id": 90}]
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(rows))
    return path


def test_parallel_branches_are_never_added_up(trace: Path) -> None:
    first, _ = read_trace(trace)
    assert first.critical == "encode_audio"
    assert first.total_ms == pytest.approx(58.5)
    assert first.slack_ms == pytest.approx({"encode_image": 30.1, "encode_audio": 0, "encode_text": 34.6})
    assert first.overhead_ms == pytest.approx(58.5 - 4 - 50 - 3)


def test_what_the_client_saw_and_the_server_did_not_is_overhead_too(trace: Path) -> None:
    found = attribution(read_trace(trace), [60.0, 60.0])
    assert found["requests"] == 2
    assert found["overhead_in_server_ms"] == pytest.approx(1.5)
    assert found["overhead_ms"] == pytest.approx(3.0)
    assert found["critical"] == {"encode_audio": 1.0}
    assert found["stages"]["encode_text"]["queued_ms"] == pytest.approx(5.7)
    assert "slack_ms" not in found["stages"]["fuse"]


def test_what_is_no_trace_is_named(tmp_path: Path) -> None:
    (tmp_path / "trace.json").write_text("[{")
    with pytest.raises(ValueError, match="isn't a trace of Triton"):
        read_trace(tmp_path / "trace.json")
