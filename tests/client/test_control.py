"""Model control and status."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import grpc
import pytest

from cmt_client import (
    ControlFailed,
    FakeTransport,
    ModelControl,
    PermissionDenied,
    ServerUnavailable,
    connect_async,
    server_status,
)
from cmt_client.operations import GetIndex, GetStatistics, Infer, LoadModel, ModelReady, Timing, UnloadModel
from cmt_pipeline.pipelines import PIPELINES
from cmt_pipeline.stages import STAGES

HEADERS = {"grpc": "triton-grpc-protocol-cmt-control", "http": "cmt-control"}


def test_the_token_travels_in_the_header_that_the_protocol_expects(wired: Any) -> None:
    header = HEADERS[wired.url.split(":")[0]]
    with ModelControl(wired.url, token="s3cret") as control:
        entries = control.index()
    assert [(entry.name, entry.version, entry.state) for entry in entries] == [
        ("emotion", 3, "READY"),
        ("fuse", None, ""),
    ]
    assert wired.headers[-1][header] == "s3cret"
    with ModelControl(wired.url) as control:
        control.index()
    assert header not in wired.headers[-1]


def test_asyncio_transports_carry_it_too(wired: Any) -> None:
    async def main() -> None:
        transport = connect_async(wired.url)
        await transport.call(GetIndex(token="s3cret"), 5.0)
        await transport.close()

    asyncio.run(main())
    assert "s3cret" in wired.headers[-1].values()


def test_a_wrong_token_is_denied(wired: Any) -> None:
    wired.refuse = (
        (grpc.StatusCode.UNAVAILABLE, "This protocol is restricted, expecting header 'x'")
        if wired.url.startswith("grpc")
        else (403, "This API is restricted, expecting header 'x'")
    )
    with ModelControl(wired.url, token="wrong") as control, pytest.raises(PermissionDenied):
        control.index()


def test_a_refusal_is_a_control_failure(wired: Any) -> None:
    status = grpc.StatusCode.INTERNAL if wired.url.startswith("grpc") else 500
    wired.refuse = (status, "failed to load 'emotion', failed to poll from model repository")
    with ModelControl(wired.url) as control, pytest.raises(ControlFailed, match="failed to poll"):
        control.index()


def test_loading_and_unloading() -> None:
    fake = FakeTransport()
    with ModelControl("fake:1", token="s3cret", timeout_s=7, transport=fake) as control:
        control.unload("emotion", dependents=True)
        assert not control.ready("emotion")
        control.load("emotion", {"max_batch_size": 4})
        assert control.ready("emotion")
        assert control.describe("emotion").parameters.keys() == {"release"}
        assert control.release("emotion_text") == 1
        control.unload("emotion_text")
        assert control.release("emotion_text") is None
        assert [s.name for s in control.statistics("fuse")] == ["fuse"]
    assert fake.calls[0] == UnloadModel("emotion", dependents=True, token="s3cret")
    assert fake.calls[2] == LoadModel("emotion", {"max_batch_size": 4}, token="s3cret")
    assert set(fake.timeouts_s) == {7}
    assert fake.closed


def test_a_load_is_never_repeated() -> None:
    fake = FakeTransport()
    fake.fail(ServerUnavailable("gone"))
    with ModelControl("fake:1", transport=fake) as control, pytest.raises(ServerUnavailable):
        control.load("emotion")
    assert len(fake.calls) == 1


def test_the_token_is_not_shown() -> None:
    assert "s3cret" not in repr(LoadModel("emotion", token="s3cret"))


def test_statistics_read_both_spellings() -> None:
    grpc_json = {
        "name": "fuse",
        "version": "2",
        "inference_count": "5",
        "execution_count": "3",
        "inference_stats": {"success": {"count": "5", "ns": "7000"}, "fail": {}},
        "batch_stats": [{"batch_size": "2", "compute_infer": {"count": "2", "ns": "9"}}],
    }
    http_json = {
        "name": "fuse",
        "version": "2",
        "inference_count": 5,
        "execution_count": 3,
        "inference_stats": {"success": {"count": 5, "ns": 7000}, "fail": {"count": 0, "ns": 0}},
        "batch_stats": [{"batch_size": 2, "compute_infer": {"count": 2, "ns": 9}}],
    }
    ((first,), (second,)) = (GetStatistics().decode({"model_stats": [entry]}) for entry in (grpc_json, http_json))
    assert first == second
    assert (first.version, first.inference_count, first.execution_count) == (2, 5, 3)
    assert first.success == Timing(5, 7000)
    assert first.batches == {2: 2}


def test_status_shows_each_pipeline_and_stage() -> None:
    fake = FakeTransport()
    fake.unloaded.add("emotion_audio")
    status = server_status(fake)
    assert [pipeline.name for pipeline in status.pipelines] == list(PIPELINES)
    assert {stage.name for stage in status.stages} == set(STAGES)
    by_name = {pipeline.name: pipeline for pipeline in status.pipelines}
    assert by_name["emotion"].release == fake.release
    assert (by_name["emotion_audio"].ready, by_name["emotion_audio"].release) == (False, None)
    assert by_name["emotion_audio"].statistics == ()
    assert status.ready
    assert json.loads(json.dumps(status.to_json()))["pipelines"][0]["name"] == "emotion"
    assert not any(isinstance(call, Infer) for call in fake.calls)


def test_status_of_a_server_without_pipelines() -> None:
    fake = FakeTransport()
    fake.unloaded |= {*PIPELINES, *STAGES}
    status = server_status(fake)
    assert (status.ready, status.stages) == (False, ())


def test_status_of_an_absent_server_is_an_error() -> None:
    fake = FakeTransport()
    fake.fail(ServerUnavailable("gone"))
    with pytest.raises(ServerUnavailable):
        server_status(fake)
    assert not any(isinstance(call, ModelReady) for call in fake.calls)
