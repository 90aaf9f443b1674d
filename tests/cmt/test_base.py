"""The full-size presets, end to end: minutes and some GB, so by `make test-base` alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cmt_cli.export import golden_sample, sample
from cmt_client import EmotionClient
from cmt_engine.engine import Precision
from cmt_engine.tensorrt_contract import inspect_engine
from cmt_export.export import ExportOptions, export
from cmt_pipeline.progress import no_progress
from cmt_pipeline.stages import COMPILED_STAGES
from serving import server_on

pytestmark = [pytest.mark.base, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared, so that the ONNX files are made once."""
    return tmp_path_factory.mktemp("base")


@pytest.mark.parametrize(
    ("preset", "precision", "bound"),
    [("base", "bf16", 2e-2), ("base", "int8", 6e-2), ("fast", "bf16", 2e-2), ("fast", "int8", 6e-2)],
)
def test_it_exports_compiles_and_serves(
    store: Path, tmp_path: Path, preset: str, precision: Precision, bound: float
) -> None:
    options = ExportOptions(preset=preset, random_weights=True, precision=precision)
    release, _ = export(options, store, golden_sample(), no_progress)
    expected = next(answer for answer in release.manifest.golden if len(answer.modalities) == 3)
    with server_on(release, tmp_path) as server, EmotionClient(server.grpc_url) as client:
        text = sample("text").read_text().strip()
        emotion = client.predict(image=sample("image"), audio=sample("audio"), text=text)
    assert not emotion.trained
    came = np.array([emotion.probabilities[label] for label in expected.probabilities])
    assert np.abs(came - np.array(list(expected.probabilities.values()))).max() < bound


def test_base_compiles_with_tensorrt_rtx(store: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX isn't installed")
    options = ExportOptions(preset="base", random_weights=True, engine="tensorrt", precision="fp16")
    release, _ = export(options, store, golden_sample(), no_progress)
    for stage in COMPILED_STAGES:
        report = inspect_engine(release.stage_folder(stage.name))
        assert {tensor.name for tensor in report.tensors} == {s.name for s in (*stage.inputs, *stage.outputs)}
