"""AOTInductor compiles PyTorch's own modules: on the CPU here, where the same code makes a GPU's packages."""

from __future__ import annotations

import os
import shutil
import subprocess
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._inductor import aoti_load_package

from cmt_cli.export import golden_sample
from cmt_client import Emotion, EmotionClient
from cmt_engine.aotinductor_build import links_statically, package, shared_libstdcxx
from cmt_engine.aotinductor_engine import AOTINDUCTOR, AOTINDUCTOR_CUDA
from cmt_engine.engine import Build, EngineError, EngineSidecar, Traceable, open_engine
from cmt_engine.gpu import VISIBLE, see_one_gpu
from cmt_engine.onnxruntime_engine import ONNXRUNTIME
from cmt_export.checkpoint import Checkpoint, checkpoint_from_preset
from cmt_export.export import PARITY_BATCHES, ExportOptions, export
from cmt_export.onnx_from_checkpoint import traceable
from cmt_export.parity import references, stage_parity
from cmt_export.samples import batches
from cmt_pipeline.labels import DEFAULT_LABEL_SET
from cmt_pipeline.limits import MAX_GPU_BATCH_SIZE
from cmt_pipeline.preprocess import make_preprocessors
from cmt_pipeline.progress import no_progress
from cmt_pipeline.stages import STAGES, sized
from cmt_pipeline.triton_config import Served, StageTuning
from cmt_server.supervise import stage_processes
from serving import server_on
from small_graphs import small_graph
from tiny_model import TINY

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs a C++ compiler: g++")


@pytest.fixture(scope="module")
def tiny() -> Checkpoint:
    return checkpoint_from_preset(TINY.name, DEFAULT_LABEL_SET, random_weights=True, seed=0)


@needs_compiler
@pytest.mark.slow
def test_it_answers_as_pytorch_does(tiny: Checkpoint, tmp_path: Path) -> None:
    """Every length and several batches through one package, in bf16, where a small grouped convolution stays wide."""
    stage, precision = "encode_audio", "bf16"
    model, folder = tiny.model, tmp_path / "stage"
    compared = batches(make_preprocessors(tiny.config.preprocess, tiny.tokenizer), PARITY_BATCHES)
    contract = sized(STAGES[stage], model.sizes)
    build = Build(lambda: traceable(model, contract), contract, folder, precision, cache=tmp_path / "cache")
    sidecar = AOTINDUCTOR.build(build)
    assert sorted(path.name for path in folder.iterdir()) == ["engine.json", "model.pt2"]
    assert EngineSidecar.read(folder) == sidecar
    assert (sidecar.engine, sidecar.onnx_sha256, sidecar.versions) == ("aotinductor", "", {"torch": torch.__version__})
    expected = references(model, contract, compared)
    row = stage_parity(open_engine(folder, 1), AOTINDUCTOR, contract, precision, expected)
    assert row.passed, row
    second = AOTINDUCTOR.build(Build(never, contract, tmp_path / "again", precision, cache=tmp_path / "cache"))
    assert second == sidecar, "the cache has it: nothing is compiled again"


@needs_compiler
@pytest.mark.slow
@pytest.mark.triton
def test_a_release_of_it_is_served(tmp_path: Path) -> None:
    """Its parity is in the manifest; Triton gives the golden answers of all seven subsets; a batch answers as one."""
    options = ExportOptions(preset=TINY.name, random_weights=True, engine="aotinductor")
    release, _ = export(options, tmp_path / "releases", golden_sample(), no_progress)
    assert {row["what"] for row in release.manifest.parity} >= {"encode_image", "encode_audio", "encode_text", "fuse"}
    files: dict[str, Any] = dict(release.golden_files())
    files["text"] = files["text"].decode()
    with server_on(release, tmp_path / "served") as server, EmotionClient(server.grpc_url) as client:
        for process in chain.from_iterable(stage_processes(server.pid or 0).values()):
            assert b"OMP_WAIT_POLICY=PASSIVE" in Path(f"/proc/{process}/environ").read_bytes()
        for golden in release.manifest.golden:
            got = client.predict(**{m: files[m] for m in golden.modalities})
            assert got.probabilities == pytest.approx(golden.probabilities, abs=1e-4)
        items = [files, {**files, "text": "No."}, files]
        together = client.predict_many(items)
        for item, one in zip(items, together, strict=True):
            assert isinstance(one, Emotion)
            assert one.probabilities == pytest.approx(client.predict(**item).probabilities, abs=1e-4)


def never() -> Traceable:
    raise AssertionError("it was asked for the module")


@pytest.mark.long
def test_graphs_from_elsewhere_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        EngineError, match=r"fuse came as ONNX .* compiles PyTorch modules: export with --engine openvino"
    ):
        AOTINDUCTOR.build(Build(small_graph("fuse"), STAGES["fuse"], tmp_path, "fp32"))


def test_other_engines_refuse_modules(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="fuse came as a PyTorch module; this engine starts from ONNX"):
        ONNXRUNTIME.build(Build(never, STAGES["fuse"], tmp_path, "fp32"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_how_to_go_on(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"torch .* sees none. Run this on such a machine .* or export with --engine"):
        AOTINDUCTOR_CUDA.build(Build(never, STAGES["fuse"], tmp_path, "bf16"))
    assert not AOTINDUCTOR_CUDA.opens_here()


@pytest.mark.long
def test_a_compiler_is_needed(tiny: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    fuse = STAGES["fuse"]
    with pytest.raises(EngineError, match=r"needs a C\+\+ compiler, and found none: apt-get install g\+\+"):
        AOTINDUCTOR.build(Build(lambda: traceable(tiny.model, fuse), fuse, tmp_path, "fp32"))


@pytest.fixture
def archive_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """g++ finds libstdc++.a before libstdc++.so, and says nothing; the folder that it looks in."""
    archive, multiarch = (_printed("g++", asked) for asked in ("-print-file-name=libstdc++.a", "-print-multiarch"))
    folder = tmp_path / "archive"
    (folder / multiarch).mkdir(parents=True)
    (folder / multiarch / "libstdc++.a").symlink_to(archive)
    monkeypatch.setenv("LIBRARY_PATH", str(folder))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    return folder


@needs_compiler
def test_a_compiler_as_it_should_be_is_left_alone() -> None:
    before = os.environ.get("LIBRARY_PATH")
    assert not links_statically("g++")
    with shared_libstdcxx():
        assert os.environ.get("LIBRARY_PATH") == before


@needs_compiler
def test_a_compiler_is_given_pytorchs_libstdcxx(archive_first: Path) -> None:
    assert links_statically("g++")
    with shared_libstdcxx():
        assert not links_statically("g++")
    assert os.environ["LIBRARY_PATH"] == str(archive_first)


@needs_compiler
@pytest.mark.slow
@pytest.mark.usefixtures("archive_first")
def test_what_such_a_compiler_makes_loads(tmp_path: Path) -> None:
    """With a libstdc++ of its own it raises std::bad_cast, or ends the process."""
    linear, rows = torch.nn.Linear(4, 2), torch.ones(3, 4)
    package(
        Traceable(Outputs(linear), (rows,), ({0: torch.export.Dim("batch", min=1, max=8)},)),
        "fp32",
        "cpu",
        tmp_path / "a.pt2",
    )
    (found,) = aoti_load_package(str(tmp_path / "a.pt2"))(rows)
    torch.testing.assert_close(found, linear(rows).detach())


class Outputs(torch.nn.Module):
    """A module as a stage is: with a tuple of outputs."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (self.module(rows),)


def _printed(compiler: str, asked: str) -> str:
    return subprocess.run([compiler, asked], capture_output=True, text=True, check=True).stdout.strip()


def test_a_package_for_another_cpu_is_refused(tmp_path: Path) -> None:
    target = AOTINDUCTOR.target()
    target["instructions"] += " avx9000"
    EngineSidecar("fuse", "aotinductor", "fp32", "model.pt2", "", {}, target).write(tmp_path)
    with pytest.raises(
        EngineError, match="fuse was compiled on a CPU with avx9000, which this one lacks: export it on"
    ):
        open_engine(tmp_path)


def test_a_damaged_package_is_told(tmp_path: Path) -> None:
    EngineSidecar("fuse", "aotinductor", "fp32", "model.pt2", "", {}, AOTINDUCTOR.target()).write(tmp_path)
    (tmp_path / "model.pt2").write_bytes(b"no package")
    with pytest.raises(EngineError, match=f"{tmp_path} doesn't open as an engine: "):
        open_engine(tmp_path)


def test_a_gpus_stages_have_gpu_instance_groups() -> None:
    served = Served(tuning={"encode_text": StageTuning(instances=3)})
    config = AOTINDUCTOR_CUDA.stage_config(STAGES["encode_text"], served)
    assert config.backend == "python"
    assert [(group.kind, group.count) for group in config.instance_group] == [(config.instance_group[0].KIND_GPU, 3)]
    assert sorted({sample.batch_size for sample in config.model_warmup}) == [1, 2, 4, 8]
    assert len({sample.name for sample in config.model_warmup}) == len(config.model_warmup)
    assert config.max_batch_size == MAX_GPU_BATCH_SIZE


@pytest.mark.parametrize(("seen", "index", "shown"), [("", 1, "1"), ("3,5", 1, "5"), ("GPU-ab", 0, "GPU-ab")])
def test_an_instance_sees_its_own_gpu(monkeypatch: pytest.MonkeyPatch, seen: str, index: int, shown: str) -> None:
    monkeypatch.setenv(VISIBLE, seen)
    see_one_gpu(index)
    assert os.environ[VISIBLE] == shown
