"""The whole path: train, evaluate, export, serve, predict; and baselines, which become ONNX as the CMT does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cmt_cli.state import State
from cmt_client import EmotionClient
from cmt_engine.onnxruntime_engine import OnnxRuntimeRunner
from cmt_export.checkpoint import checkpoint_from_preset, load_checkpoint
from cmt_export.export import ExportOptions, GoldenSample, export
from cmt_export.model import run_stage
from cmt_export.onnx_from_checkpoint import MODEL_FILE, onnx_from_checkpoint
from cmt_pipeline.modality import MODALITIES
from cmt_pipeline.stages import FUSE
from cmt_pipeline.tensors import MODEL_WIDTH, Array
from cmt_training.evaluate import evaluate
from cmt_training.examples import DataSet
from cmt_training.prepare import Prepared
from cmt_training.train import train
from items import difference, reference
from serving import server_on
from small_training import OPTIONS, silent
from tiny_model import TINY


@pytest.mark.long
@pytest.mark.triton
def test_from_data_to_an_answer(prepared: Prepared, corpus: DataSet, tmp_path: Path) -> None:
    out = tmp_path / "out"
    train(prepared, OPTIONS, out, silent)
    checkpoint = load_checkpoint(out)
    assert evaluate(checkpoint, prepared, silent).calibrated["weighted_f1"] > 0.5
    options = ExportOptions(checkpoint=out, engine="onnxruntime")
    release, _ = export(options, State(tmp_path / "state").releases, GoldenSample(), silent)
    assert release.manifest.info.trained
    with server_on(release, tmp_path) as server, EmotionClient(server.grpc_url) as client:
        right = 0
        for example in corpus.of("test"):
            item = {
                "image": example.image.path.read_bytes() if example.image else None,
                "audio": example.audio.path.read_bytes() if example.audio else None,
            }
            emotion = client.predict(image=item["image"], audio=item["audio"], text=example.text)
            sent = {m: data for m, data in item.items() if data is not None}
            sent |= {"text": example.text.encode()} if example.text else {}
            assert difference(emotion, reference(checkpoint, sent)) < 1e-4  # type: ignore[arg-type]
            assert emotion.trained
            right += emotion.label == example.label
        assert right >= 6  # of 9


@pytest.mark.long
@pytest.mark.parametrize("model", ["text", "late", "concat", "conventional"])
def test_a_baseline_is_exported_under_the_same_contract(model: str, tmp_path: Path) -> None:
    untrained = checkpoint_from_preset(TINY.name, "meld", model=model).model
    onnx_from_checkpoint(untrained, FUSE, tmp_path / "fuse")
    engine = OnnxRuntimeRunner(tmp_path / "fuse" / MODEL_FILE)
    rng = np.random.default_rng(0)
    inputs: dict[str, Array] = {}
    for m, tokens in zip(MODALITIES, (197, 49, 1), strict=True):  # text is absent
        inputs[f"{m}_features"] = rng.normal(size=(2, tokens, MODEL_WIDTH)).astype(np.float32)
        inputs[f"{m}_mask"] = np.full((2, tokens), int(m != "text"), np.int64)
    came, wanted = engine.run(inputs), run_stage(untrained, FUSE, inputs)
    assert all(np.abs(came[name] - wanted[name]).max() < 1e-4 for name in wanted)
