"""The reference model repository: in step with the contract, and sound to Triton's own reading of it."""

from __future__ import annotations

import io
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig, ModelInstanceGroup

from cmt_pipeline.labels import labels_of
from cmt_pipeline.limits import MAX_BATCH_SIZE, MAX_GPU_BATCH_SIZE, Limits
from cmt_pipeline.pipelines import PIPELINES, Pipeline
from cmt_pipeline.reference import reference_files, stage_files, write_files
from cmt_pipeline.stages import COMPILED_STAGES, FUSE, STAGES, Stage, sized
from cmt_pipeline.tensors import ABSENT_TOKENS, DEFAULT_SIZES, TensorSpec, resolved
from cmt_pipeline.triton_config import (
    DEFAULT_TUNING,
    LINE_WIDTH,
    Served,
    StageTuning,
    from_pbtxt,
    pipeline_config,
    stage_config,
    tensorrt_config,
    to_pbtxt,
)

ROOT = Path(__file__).parents[2]
REPOSITORY = ROOT / "model_repository"
#: What .gitignore keeps out, and what running Python leaves.
ARTEFACTS = (".onnx", ".onnx.data", ".plan", ".xml", ".bin", ".pyc")

#: dtype -> Triton's type and its bytes an element; BYTES are preceded by their length instead
TYPES = {
    "BYTES": (DataType.TYPE_STRING, 0),
    "FP32": (DataType.TYPE_FP32, 4),
    "INT64": (DataType.TYPE_INT64, 8),
}

CONFIGS = {path.relative_to(REPOSITORY).as_posix(): path for path in sorted(REPOSITORY.rglob("*.pbtxt"))}
STAGE_CONFIGS = [(stage, file) for stage in STAGES.values() for file in CONFIGS if file.startswith(f"{stage.name}/")]
stage_configs = pytest.mark.parametrize(("stage", "file"), STAGE_CONFIGS, ids=[file for _, file in STAGE_CONFIGS])
all_pipelines = pytest.mark.parametrize("pipeline", PIPELINES.values(), ids=PIPELINES)


def config_of(file: str) -> ModelConfig:
    return from_pbtxt((REPOSITORY / file).read_text())


def shapes_of(specs: tuple[TensorSpec, ...], labels: int = -1) -> list[tuple[str, int, list[int]]]:
    return [(s.name, TYPES[s.dtype][0], [*resolved(s, labels)]) for s in specs]


def tensors_of(tensors: Any) -> list[tuple[str, int, list[int]]]:
    return [(tensor.name, tensor.data_type, list(tensor.dims)) for tensor in tensors]


def repository_files() -> Iterator[Path]:
    """Those that git tracks; without git, those that aren't artefacts."""
    if (ROOT / ".git").exists():
        listed = subprocess.run(["git", "ls-files", "-z", REPOSITORY], cwd=ROOT, capture_output=True, check=True)
        yield from (ROOT / name for name in listed.stdout.decode().split("\0") if name)
    else:
        yield from (p for p in REPOSITORY.rglob("*") if p.is_file() and not p.name.endswith(ARTEFACTS))


def test_the_repository_in_git_is_the_contracts() -> None:
    came = {path.relative_to(REPOSITORY).as_posix(): path.read_bytes() for path in repository_files()}
    wanted = reference_files()
    differ = sorted(name for name in came.keys() | wanted.keys() if came.get(name) != wanted.get(name))
    assert not differ, f"run `make model-repository`, then look at git status: {differ}"


def test_files_are_written_as_they_are(tmp_path: Path) -> None:
    write_files(tmp_path, {"a/b/c": b"\0one", "d": b""})
    assert (tmp_path / "a/b/c").read_bytes() == b"\0one"
    assert (tmp_path / "d").read_bytes() == b""


def test_every_model_has_its_configurations_and_a_version() -> None:
    compiled = {f"{stage.name}/configs/tensorrt.pbtxt" for stage in COMPILED_STAGES}
    assert set(CONFIGS) == {f"{name}/config.pbtxt" for name in (*STAGES, *PIPELINES)} | compiled
    for name in (*STAGES, *PIPELINES):
        assert (REPOSITORY / name / "1").is_dir()


@pytest.mark.parametrize("file", CONFIGS)
def test_a_configuration_reads_well(file: str) -> None:
    lines = CONFIGS[file].read_text().splitlines()
    assert max(map(len, lines)) <= LINE_WIDTH
    assert lines[0].startswith("# Generated from the tensor contract")
    assert config_of(file).name == file.split("/")[0]


@stage_configs
def test_a_stage_has_the_tensors_of_the_contract(stage: Stage, file: str) -> None:
    config = config_of(file)
    assert tensors_of(config.input) == shapes_of(stage.inputs)
    assert tensors_of(config.output) == shapes_of(stage.outputs)
    assert {tensor.optional for tensor in config.input} == {not stage.compiled}
    labelled = {output.name for output in config.output if output.label_filename == "labels.txt"}
    assert labelled == ({"logits", "probabilities"} if stage is FUSE else set())


@stage_configs
def test_a_stage_runs_where_its_configuration_says(stage: Stage, file: str) -> None:
    config = config_of(file)
    gpu = file.endswith("tensorrt.pbtxt")
    assert (config.backend, config.platform) == (("", "tensorrt_plan") if gpu else ("python", ""))
    assert config.max_batch_size == (MAX_GPU_BATCH_SIZE if gpu else MAX_BATCH_SIZE)
    kind = ModelInstanceGroup.KIND_GPU if gpu else ModelInstanceGroup.KIND_CPU
    assert [(group.kind, group.count) for group in config.instance_group] == [(kind, 1)]
    assert list(config.version_policy.specific.versions) == [1]
    assert config.HasField("dynamic_batching")
    delay = DEFAULT_TUNING[stage.name].queue_delay_us if stage.compiled else 0
    assert config.dynamic_batching.max_queue_delay_microseconds == delay
    assert ("threads" in config.parameters) == (stage.compiled and not gpu)


@stage_configs
def test_warmup_meets_every_bucket(stage: Stage, file: str) -> None:
    """And `fuse` also every absence."""
    samples = config_of(file).model_warmup
    assert len({sample.name for sample in samples}) == len(samples)
    for spec in sized(stage, DEFAULT_SIZES).inputs:
        for index, axis in enumerate(spec.axes):
            assert axis.sizes
            assert {sample.inputs[spec.name].dims[index] for sample in samples} == set(axis.sizes)
    for sample in samples:
        assert sample.batch_size == 1
        assert set(sample.inputs) == {spec.name for spec in stage.inputs}
    if stage is FUSE:
        absences = {
            tuple(sample.inputs[f"{m}_mask"].dims[0] == ABSENT_TOKENS for m in ("image", "audio", "text"))
            for sample in samples
        }
        assert len(absences) == 7


@stage_configs
def test_warmup_data_is_there_and_of_the_right_size(stage: Stage, file: str) -> None:
    folder = REPOSITORY / stage.name / "warmup"
    named = set()
    for sample in config_of(file).model_warmup:
        for spec in stage.inputs:
            given_ = sample.inputs[spec.name]
            assert given_.data_type == TYPES[spec.dtype][0]
            if given_.zero_data:
                assert spec.dtype != "BYTES"
                continue
            named.add(given_.input_data_file)
            data = (folder / given_.input_data_file).read_bytes()
            if spec.dtype == "BYTES":
                assert struct.unpack("<I", data[:4])[0] == len(data) - 4
            else:
                assert len(data) == np.prod(given_.dims) * TYPES[spec.dtype][1]
    assert named == ({path.name for path in folder.iterdir()} if folder.exists() else set())


def test_lengths_and_masks_that_warm_up_are_not_empty() -> None:
    """A request with an empty one is refused, and a refused warmup keeps a model from loading."""
    for file in ("check/config.pbtxt", "encode_audio/config.pbtxt", "encode_text/config.pbtxt"):
        for sample in config_of(file).model_warmup:
            for name in {"num_samples", "attention_mask"} & set(sample.inputs):
                tensor = sample.inputs[name]
                values = np.fromfile(REPOSITORY / file.split("/")[0] / "warmup" / tensor.input_data_file, "<i8")
                longest = sample.inputs["input_values"].dims[0] if name == "num_samples" else 1
                assert set(values.tolist()) == {longest}


def test_the_image_that_warms_up_is_one() -> None:
    data = (REPOSITORY / "preprocess/warmup/image").read_bytes()[4:]
    assert Image.open(io.BytesIO(data)).size == (32, 32)


@pytest.mark.parametrize("stage", COMPILED_STAGES, ids=lambda stage: stage.name)
def test_cuda_graphs_are_those_of_the_warmup(stage: Stage) -> None:
    """A graph is captured while a model warms up, of the shapes that are listed and no others."""
    config = config_of(f"{stage.name}/configs/tensorrt.pbtxt")
    assert config.optimization.cuda.graphs
    graphs = [
        (spec.batch_size, {name: tuple(shape.dim) for name, shape in spec.input.items()})
        for spec in config.optimization.cuda.graph_spec
    ]
    warmups = [
        (sample.batch_size, {name: tuple(tensor.dims) for name, tensor in sample.inputs.items()})
        for sample in config.model_warmup
    ]
    assert graphs == warmups


@all_pipelines
def test_a_pipeline_is_an_ensemble_of_pinned_stages(pipeline: Pipeline) -> None:
    config = config_of(f"{pipeline.name}/config.pbtxt")
    assert config.platform == "ensemble"
    assert tensors_of(config.input) == shapes_of(pipeline.inputs)
    assert tensors_of(config.output) == shapes_of(pipeline.outputs)
    steps = config.ensemble_scheduling.step
    assert [step.model_name for step in steps] == [step.stage.name for step in pipeline.steps]
    for step, wanted in zip(steps, pipeline.steps, strict=True):
        assert step.model_version >= 1
        assert (REPOSITORY / step.model_name / str(step.model_version)).is_dir()
        assert dict(step.input_map) == dict(wanted.inputs)
        assert dict(step.output_map) == dict(wanted.outputs)
        for member in (f"{step.model_name}/config.pbtxt", f"{step.model_name}/configs/tensorrt.pbtxt"):
            assert member not in CONFIGS or config.max_batch_size <= config_of(member).max_batch_size
    assert list(config.version_policy.specific.versions) == [1]
    for field in ("instance_group", "optimization", "model_warmup", "dynamic_batching"):
        assert field not in {descriptor.name for descriptor, _ in config.ListFields()}  # ensembles take none of them


@all_pipelines
def test_the_tensors_between_steps_fit_by_the_configurations_alone(pipeline: Pipeline) -> None:
    """As Triton checks them: type, rank and every fixed size; only dims of -1 take others."""
    config = config_of(f"{pipeline.name}/config.pbtxt")
    made = {name: (kind, dims) for name, kind, dims in tensors_of(config.input)}
    for step in config.ensemble_scheduling.step:
        member = config_of(f"{step.model_name}/config.pbtxt")
        inputs = {name: (kind, dims) for name, kind, dims in tensors_of(member.input)}
        outputs = {name: (kind, dims) for name, kind, dims in tensors_of(member.output)}
        for name, source in step.input_map.items():
            (kind, dims), (wanted_kind, wanted) = made[source], inputs[name]
            assert kind == wanted_kind
            assert all(w in (-1, d) for d, w in zip(dims, wanted, strict=True))
        made |= {target: outputs[name] for name, target in step.output_map.items()}
    for name, kind, dims in tensors_of(config.output):
        assert made[name] == (kind, dims)


def test_labels_are_those_of_the_set() -> None:
    assert (REPOSITORY / "fuse/labels.txt").read_text().split() == list(labels_of("meld"))
    files = stage_files(labels=labels_of("iemocap4"))
    assert files["fuse/labels.txt"] == b"anger\nhappiness\nneutral\nsadness\n"


hostile = st.text() | st.lists(
    st.sampled_from(["{", "}", " }\n", '"', "\\", "\n}\n", "name: 1", "é", "\x00", "\x85", "\u2028"])
).map("".join)
by_stage = st.sampled_from(list(STAGES))
served = st.builds(
    Served,
    versions=st.dictionaries(by_stage, st.lists(st.integers(1, 2**40), min_size=1, unique=True)),
    pins=st.dictionaries(by_stage, st.integers(1, 2**40)),
    labels=st.sampled_from([-1, 4, 8]),
    parameters=st.dictionaries(st.sampled_from(["release", "previous_release", "canary_share"]), hostile),
    limits=st.builds(Limits, max_audio_s=st.floats(1, 16), max_text_bytes=st.integers(1, 10**6)),
    tuning=st.dictionaries(
        by_stage,
        st.builds(
            StageTuning,
            instances=st.integers(1, 16),
            threads=st.integers(0, 64),
            queue_delay_us=st.integers(0, 10**6),
            niceness=st.integers(0, 19),
        ),
    ),
)


@settings(max_examples=25, deadline=None)
@given(served, st.sampled_from(list(STAGES.values())))
def test_a_stage_comes_back_out_of_its_text(served: Served, stage: Stage) -> None:
    configs = [stage_config(stage, served)]
    if stage.compiled:
        configs.append(tensorrt_config(stage, served))
    for config in configs:
        came = from_pbtxt(to_pbtxt(config))
        assert came == config
        assert tensors_of(came.input) == shapes_of(stage.inputs, served.labels)
        assert tensors_of(came.output) == shapes_of(stage.outputs, served.labels)
        assert list(came.version_policy.specific.versions) == list(served.versions.get(stage.name, [1]))
        tuning = served.tuning.get(stage.name, StageTuning())
        assert came.dynamic_batching.max_queue_delay_microseconds == tuning.queue_delay_us
        assert [group.count for group in came.instance_group] == [tuning.instances]
    cpu = from_pbtxt(to_pbtxt(configs[0]))
    tuning = served.tuning.get(stage.name, StageTuning())
    parameters = {key: parameter.string_value for key, parameter in cpu.parameters.items()}
    for name in ("threads", "niceness"):
        assert parameters.pop(name, None) == (str(getattr(tuning, name)) if stage.compiled else None)
    assert Limits.from_text(parameters) == (Limits() if stage.compiled else served.limits)


@settings(max_examples=25, deadline=None)
@given(served, st.sampled_from(list(PIPELINES.values())))
def test_a_pipeline_comes_back_out_of_its_text(served: Served, pipeline: Pipeline) -> None:
    config = pipeline_config(pipeline, served)
    came = from_pbtxt(to_pbtxt(config))
    assert came == config
    assert tensors_of(came.output) == shapes_of(pipeline.outputs, served.labels)
    for step in came.ensemble_scheduling.step:
        assert step.model_version == served.pins.get(step.model_name, 1)
    parameters = {key: parameter.string_value for key, parameter in came.parameters.items()}
    assert parameters == served.parameters


UNKNOWN = [
    "optimization { cuda { graph_specs { } } }",
    "instance_group { kind: KIND_NPU }",
    "dynamic_batching { queue: 1 }",
]


@pytest.mark.parametrize("text", ["name: 1", 'nam: "x"', "instance_group { count: 1", "max_batch_size: 8 8", *UNKNOWN])
def test_what_triton_doesnt_know_is_refused(text: str) -> None:
    with pytest.raises(text_format.ParseError):
        from_pbtxt(text)
