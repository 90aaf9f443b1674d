"""What peers compute is the checkpoint, whatever makes it fast."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest

from cmt_cli.export import sample, trained_weights
from cmt_export.checkpoint import checkpoint_from_preset, save_checkpoint
from cmt_perf.bench.scenarios import Scenario, Size
from cmt_perf.bench.systems import parts_of, peer
from cmt_perf.bench.work import gflop_of
from cmt_perf.peers.runtimes import RUNTIMES, Runtime, graphs_of, parity_of, prepare
from cmt_perf.whole_model import WholeModel
from cmt_pipeline.labels import labels_of
from cmt_pipeline.modality import MODALITIES, Modality
from cmt_pipeline.stages import COMPILED_STAGES

MOST_OFF = {"eager": 0.0, "compiled": 0.04, "torchao": 0.2}  # of a probability; others' int8 holds the label alone


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    weights = trained_weights("mini", "meld")
    assert weights is not None
    return Path(shutil.copytree(weights, tmp_path_factory.mktemp("peers") / "mini"))


@pytest.mark.slow
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_runtime_answers_as_eager_pytorch_does(runtime: Runtime, trained: Path) -> None:
    if runtime == "torchao" and importlib.util.find_spec("torchao") is None:
        pytest.skip("torchao isn't installed; `pip install 'cmt-triton[peers]'`")
    files: dict[Modality, list[bytes]] = {m: [sample(m).read_bytes().strip()] for m in MODALITIES}
    expected = WholeModel(trained).answer(files)["probabilities"]
    prepare(trained, runtime)
    prepare(trained, runtime)  # finds them
    with_graphs = runtime in ("onnxruntime", "openvino")
    assert graphs_of(trained, runtime).is_dir() == with_graphs
    off = parity_of(trained, runtime)
    assert set(off) == ({stage.name for stage in COMPILED_STAGES} if with_graphs else set())
    assert all(error > 1e-3 for error in off.values()), "int8 is never the same"
    found = WholeModel(trained, runtime=runtime).answer(files)["probabilities"]
    assert found.shape == (1, len(labels_of("meld")))
    assert found.sum() == pytest.approx(1, abs=1e-2)
    np.testing.assert_allclose(found, expected, atol=MOST_OFF.get(runtime, 1.0))
    assert found.argmax() == expected.argmax()


def test_a_peer_is_a_server_and_what_computes() -> None:
    assert parts_of("fastapi") == ("fastapi", "eager")
    assert parts_of("pytriton:openvino") == ("pytriton", "openvino")
    for wrong in ("flask", "fastapi:fast", ":compiled", ""):
        with pytest.raises(ValueError, match="expected fastapi, pytriton, bentoml"):
            parts_of(wrong)


@pytest.mark.long
def test_a_peer_whose_graphs_cant_be_made_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match=r"onnxruntime: making graphs of .*none ended with 1: .*none"),
        peer("fastapi:onnxruntime", tmp_path / "none", tmp_path / "server"),
    ):
        pass


@pytest.mark.long
def test_the_work_of_a_request_is_counted(tmp_path: Path) -> None:
    """An image's by the formula: patches, then projections, scores and sums, feed-forward nets of each layer."""
    save_checkpoint(checkpoint_from_preset("mini", "meld"), tmp_path / "mini")
    short, longer = (
        gflop_of(tmp_path / "mini", Scenario("one", "closed", size=Size(seconds, 12, 96))) for seconds in (1.0, 4.0)
    )
    width, tokens, layers = 128, 197, 4
    layer = 2 * tokens * (4 * width * width + 2 * tokens * width + 2 * width * 512)
    projected = 2 * (196 * 3 * 16 * 16 * width + tokens * width * 256)
    assert short["encode_image"] == pytest.approx((layers * layer + projected) / 1e9, abs=2e-3)
    assert short["encode_image"] == longer["encode_image"]
    assert longer["encode_audio"] > 3 * short["encode_audio"]
    assert 0 < short["fuse"] < longer["fuse"]
