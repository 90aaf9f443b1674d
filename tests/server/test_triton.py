"""What plain Triton tools see: statistics, classification, health, metadata; and the repository in git."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client

from cmt_client import EmotionClient, connect, server_status
from cmt_engine.engine import Precision
from cmt_export.checkpoint import Checkpoint
from cmt_pipeline.labels import labels_of
from cmt_pipeline.modality import MODALITIES, SUBSETS
from cmt_pipeline.pipelines import PIPELINES
from cmt_pipeline.stages import STAGES
from cmt_release.release import Release
from cmt_server.server import ServerOptions, TritonServer
from items import as_request, random_items, reference

ROOT = Path(__file__).parents[2]


def executions(server: TritonServer) -> dict[str, int]:
    transport = connect(server.grpc_url)
    try:
        return {stage.name: stage.execution_count for stage in server_status(transport).stages}
    finally:
        transport.close()


@pytest.mark.parametrize("subset", SUBSETS, ids="+".join)
def test_absent_encoders_dont_run(server: TritonServer, subset: tuple[str, ...]) -> None:
    item = next(item for item in random_items(7, seed=2) if tuple(item) == subset)
    before = executions(server)
    with EmotionClient(server.grpc_url) as client:
        client.predict(**as_request(item))
    needed = {"preprocess", *(f"encode_{m}" for m in subset), "fuse"}
    for _ in range(100):  # Triton counts an execution after it has sent its answer
        ran = {name for name, count in executions(server).items() if count > before[name]}
        if ran >= needed:
            break
        time.sleep(0.05)
    assert ran == needed


def test_classification_answers_with_names(server: TritonServer, checkpoint: Checkpoint) -> None:
    """Triton's classification extension, through the ensemble, by `label_filename` of its last stage."""
    item = random_items(7, seed=2)[6]
    text = grpc_client.InferInput("text", [1, 1], "BYTES")
    text.set_data_from_numpy(np.array([[item["text"]]], dtype=object))
    client = grpc_client.InferenceServerClient(server.grpc_url.removeprefix("grpc://"))
    answer = client.infer("emotion_text", [text], outputs=[grpc_client.InferRequestedOutput("probabilities", 3)])
    client.close()
    named = [entry.decode().split(":") for entry in answer.as_numpy("probabilities")[0]]
    expected = reference(checkpoint, item)["probabilities"]
    best = np.argsort(-expected)[:3]
    assert [name for _, _, name in named] == [labels_of("meld")[index] for index in best]
    assert [float(p) for p, _, _ in named] == pytest.approx(expected[best].tolist(), abs=1e-4)


def test_plain_tritonclient_over_http(server: TritonServer, checkpoint: Checkpoint) -> None:
    item = random_items(7, seed=2)[0]
    inputs = []
    for modality in MODALITIES:
        tensor = http_client.InferInput(modality, [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[item[modality]]], dtype=object))
        inputs.append(tensor)
    client = http_client.InferenceServerClient(server.http_url.removeprefix("http://"))
    came = client.infer("emotion", inputs).as_numpy("probabilities")[0]
    client.close()
    assert np.abs(came - reference(checkpoint, item)["probabilities"]).max() < 1e-4


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl isn't installed")
def test_curl_sees_health_and_metadata(server: TritonServer) -> None:
    def curl(path: str, *options: str) -> str:
        command = ["curl", "--silent", "--fail", *options, f"{server.http_url}{path}"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/emotion/ready"):
        assert curl(path, "--output", "/dev/null", "--write-out", "%{http_code}") == "200"
    metadata = json.loads(curl("/v2/models/emotion"))
    assert [tensor["name"] for tensor in metadata["inputs"]] == list(MODALITIES)
    assert metadata["versions"]


def test_metrics_name_every_stage(server: TritonServer) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics") as response:
        text = response.read().decode()
    for stage in STAGES:
        assert f'nv_inference_request_success{{model="{stage}"' in text


@pytest.mark.long
@pytest.mark.triton
def test_plain_triton_loads_the_repository_of_git(
    release_of: Callable[[Precision], Release], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Promise 7: with artefacts laid into it, model_repository/ as it is in git is served."""
    repository = tmp_path / "repository"
    shutil.copytree(ROOT / "model_repository", repository)
    release = release_of("fp32")
    for stage in STAGES:
        shutil.copytree(release.stage_folder(stage), repository / stage / "1", dirs_exist_ok=True)
    item = random_items(7, seed=2)[6]
    options = ServerOptions(repository, tmp_path / "server", http_port=0, grpc_port=0, metrics_port=0)
    with TritonServer(options) as running:
        client = grpc_client.InferenceServerClient(running.grpc_url.removeprefix("grpc://"))
        text = grpc_client.InferInput("text", [1, 1], "BYTES")
        text.set_data_from_numpy(np.array([[item["text"]]], dtype=object))
        came = client.infer("emotion_text", [text]).as_numpy("probabilities")[0]
        assert all(client.is_model_ready(name) for name in PIPELINES)
        client.close()
    assert np.abs(came - reference(checkpoint, item)["probabilities"]).max() < 1e-4


def test_serving_changes_no_tracked_file(server: TritonServer) -> None:
    changed = subprocess.run(
        ["git", "status", "--porcelain", "model_repository"], cwd=ROOT, capture_output=True, text=True
    )
    if changed.returncode:
        pytest.skip("not a git checkout")
    assert changed.stdout == ""
