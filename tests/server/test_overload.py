"""Load on a real server: refusals are typed at every pipeline, and a storm leaves nothing behind."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections import Counter

import numpy as np
import pytest

from cmt_client import EmotionClient, Overloaded
from cmt_client.errors import from_triton
from cmt_client.requests import from_item
from cmt_perf.overload import LOOPS, _rate
from cmt_perf.storm import Storm, encoded
from cmt_perf.traffic import TrafficPlan, traffic_items
from cmt_pipeline import errors as pipeline_errors
from cmt_pipeline.limits import DEFAULT_LIMITS
from cmt_pipeline.pipelines import PIPELINES, Pipeline
from cmt_pipeline.stages import STAGES
from cmt_server.queues import Metrics
from cmt_server.server import TritonServer

TIMEOUT_S = 60.0
STORM = 4.0
SECONDS = 5.0


def tensors_of(pipeline: Pipeline) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    """Any input at all: it is refused before anybody looks at it."""
    tensors = {}
    for spec in pipeline.inputs:
        shape = [1, *(axis.sizes[0] for axis in spec.axes)]
        tensors[spec.name] = (
            np.full(shape, b"x", np.object_) if spec.dtype == "BYTES" else np.ones(shape, spec.numpy_dtype)
        )
    return tensors


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_who_waits_no_longer_is_refused_at_every_pipeline(server: TritonServer, protocol: str) -> None:
    """With Triton's own field for it, which any client can send."""
    import tritonclient.grpc
    import tritonclient.http
    from tritonclient.utils import InferenceServerException, np_to_triton_dtype

    module = getattr(tritonclient, protocol)
    url = f"127.0.0.1:{server.grpc_port if protocol == 'grpc' else server.http_port}"
    with module.InferenceServerClient(url) as client:
        for name, pipeline in PIPELINES.items():
            inputs = []
            for tensor, array in tensors_of(pipeline).items():
                inputs.append(module.InferInput(tensor, list(array.shape), np_to_triton_dtype(array.dtype)))
                inputs[-1].set_data_from_numpy(array)
            with pytest.raises(InferenceServerException) as raised:
                client.infer(name, inputs, timeout=1)
            ours = from_triton(raised.value, "here")
            assert isinstance(ours, Overloaded), name
            assert ours.code == "deadline"
            assert raised.value.status() == ("StatusCode.UNAVAILABLE" if protocol == "grpc" else "503")


def test_an_overloaded_server_says_503_and_when_to_come_back(server: TritonServer) -> None:
    body = {
        "parameters": {"timeout": 1},
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [1, 1], "data": ["a"]}],
    }
    url = f"{server.http_url}/v2/models/emotion_text/infer"
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode()), timeout=TIMEOUT_S)
    assert raised.value.code == 503
    said = pipeline_errors.Overloaded.from_wire(json.loads(raised.value.read())["error"])
    assert said is not None
    assert said.code == "deadline"


@pytest.mark.slow
def test_in_a_storm_the_work_goes_on_and_nothing_is_left_behind(server: TritonServer) -> None:
    items = traffic_items(TrafficPlan("", "", full=True))
    requests = [encoded(from_item(item, DEFAULT_LIMITS), TIMEOUT_S) for item in items]
    metrics = Metrics("127.0.0.1", server.metrics_port)
    with Storm(server.grpc_url.removeprefix("grpc://"), requests, TIMEOUT_S) as storm:
        storm.closed(LOOPS[0], 2.0)
        saturation = max(_rate(storm.closed(loops, 3.0)) for loops in LOOPS)
        replies = storm.open(STORM * saturation, SECONDS, seed=0)
        assert storm.one().fate == "answered"
    fates = Counter(reply.fate for reply in replies)
    assert not fates["failed"]
    assert not fates["late"]
    assert fates["answered"] >= 0.4 * saturation * SECONDS
    assert fates["refused"] >= 0.25 * len(replies)
    refused = np.median([reply.latency_ms for reply in replies if reply.fate == "refused"])
    assert refused < np.median([reply.latency_ms for reply in replies if reply.fate == "answered"])
    left = {name: queue.waiting for name, queue in metrics.queues().items() if name in STAGES and queue.waiting}
    metrics.close()
    assert not left
    with EmotionClient(server.http_url) as client:
        assert client.predict(text="Who is there?").label
