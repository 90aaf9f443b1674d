"""config.pbtxt of every stage and pipeline, generated from the contract.

Built as Triton's own ModelConfig message (model_config.proto), so that a field that Triton doesn't know can't be
written. Each stage has a CPU configuration (python backend) and, where an engine is served otherwise, a variant of it:
TensorRT's is `configs/tensorrt.pbtxt`, chosen with `--model-config-name tensorrt`, AOTInductor's on a GPU
`configs/gpu.pbtxt`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig, ModelInstanceGroup

from cmt_pipeline.constants import LABELS_FILE
from cmt_pipeline.limits import DEFAULT_LIMITS, MAX_BATCH_SIZE, MAX_GPU_BATCH_SIZE, Limits
from cmt_pipeline.modality import MODALITIES, SUBSETS
from cmt_pipeline.pipelines import PIPELINE_VERSION, Pipeline
from cmt_pipeline.stages import FUSE, Stage, sized
from cmt_pipeline.tensors import ABSENT_TOKENS, DEFAULT_SIZES, FEATURE_AXIS, Sizes, TensorSpec, resolved

VARIANTS_FOLDER = "configs"
WARMUP_FOLDER = "warmup"
LINE_WIDTH = 110  # of a configuration's text

#: Requests that wait for a stage before the fan-out itself, which answers or refuses each in well under a millisecond.
#: Only there may Triton 2.51 refuse any: when it does so at a step with others beside it, it crashes or leaks.
MAX_FRONT_QUEUE = 64

#: Beyond single requests, on a GPU, where a batch of another size is other code.
WARM_UP_BATCHES = (2, 4, 8)

DATA_TYPES = {"BYTES": DataType.TYPE_STRING, "FP32": DataType.TYPE_FP32, "INT64": DataType.TYPE_INT64}


@dataclass(frozen=True)
class StageTuning:
    """How a stage runs on this machine.

    threads: of its engine, 0 for one per core; queue_delay_us: how long the dynamic batcher waits for company;
    niceness: of its processes, 0 to 19. On few cores the encoder that takes longest should have them when it wants
    them: the others have time, but requests for those others alone then wait too. A plan on a GPU takes neither.
    """

    instances: int = 1
    threads: int = 0
    queue_delay_us: int = 0
    niceness: int = 0


DEFAULT_TUNING: Mapping[str, StageTuning] = {
    "encode_image": StageTuning(queue_delay_us=200),
    "encode_audio": StageTuning(queue_delay_us=200),
    "encode_text": StageTuning(queue_delay_us=200),
    "fuse": StageTuning(queue_delay_us=100),
}


@dataclass(frozen=True)
class Served:
    """What a release decides in the configurations. The defaults give the reference repository in git."""

    versions: Mapping[str, Sequence[int]] = field(default_factory=dict)  # of each stage, as its version policy lists
    pins: Mapping[str, int] = field(default_factory=dict)  # stage -> version that the pipelines use; 1 if not named
    labels: int = -1
    sizes: Sizes | None = None  # of its features; in the reference they are open
    parameters: Mapping[str, str] = field(default_factory=dict)  # of the pipelines: which release, and its place
    limits: Limits = DEFAULT_LIMITS
    tuning: Mapping[str, StageTuning] = field(default_factory=lambda: DEFAULT_TUNING)


REFERENCE = Served()


def stage_config(stage: Stage, served: Served = REFERENCE) -> ModelConfig:
    """The CPU configuration: python backend, whose adapter runs the compiled engine."""
    tuning = served.tuning.get(stage.name, StageTuning())
    config = _stage_base(stage, served, MAX_BATCH_SIZE, tuning)
    config.backend = "python"
    config.instance_group.add(kind=ModelInstanceGroup.KIND_CPU, count=tuning.instances)
    if stage.compiled:
        config.parameters["threads"].string_value = str(tuning.threads)
        config.parameters["niceness"].string_value = str(tuning.niceness)
    if not stage.compiled:
        config.dynamic_batching.default_queue_policy.max_queue_size = MAX_FRONT_QUEUE
        for name, value in served.limits.changed().items():
            config.parameters[name].string_value = str(value)
    return config


def gpu_stage_config(stage: Stage, served: Served = REFERENCE) -> ModelConfig:
    """The GPU configuration of a compiled stage that the python backend runs: GPU instance groups, larger batches, each
    bucket warmed up at every batch of WARM_UP_BATCHES."""
    tuning = served.tuning.get(stage.name, StageTuning())
    config = _stage_base(stage, served, MAX_GPU_BATCH_SIZE, tuning)
    config.backend = "python"
    config.instance_group.add(kind=ModelInstanceGroup.KIND_GPU, count=tuning.instances)
    config.parameters["threads"].string_value = str(tuning.threads)
    singles = list(config.model_warmup)
    for batch in WARM_UP_BATCHES:
        for single in singles:
            sample = config.model_warmup.add()
            sample.CopyFrom(single)
            sample.name, sample.batch_size = f"{single.name}_x{batch}", batch
    return config


def tensorrt_config(stage: Stage, served: Served = REFERENCE) -> ModelConfig:
    """The GPU configuration of a compiled stage: a TensorRT plan with CUDA graphs for the buckets."""
    tuning = served.tuning.get(stage.name, StageTuning())
    # a plan's sizes are its own, and Triton wants the same ones here
    config = _stage_base(sized(stage, served.sizes) if served.sizes else stage, served, MAX_GPU_BATCH_SIZE, tuning)
    config.platform = "tensorrt_plan"
    config.instance_group.add(kind=ModelInstanceGroup.KIND_GPU, count=tuning.instances)
    config.optimization.cuda.graphs = True
    for shapes in bucket_shapes(stage, served.sizes or DEFAULT_SIZES):
        spec = config.optimization.cuda.graph_spec.add(batch_size=1)
        for name, dims in shapes.items():
            spec.input[name].dim.extend(dims)
    return config


def pipeline_config(pipeline: Pipeline, served: Served = REFERENCE, name: str | None = None) -> ModelConfig:
    """The ensemble of a pipeline. Its steps pin stage versions, so that no answer mixes two releases.

    A new release is a new configuration of the same version: Triton swaps the two, and a request in flight ends with
    the one that it began with.
    """
    config = ModelConfig(name=name or pipeline.name, platform="ensemble", max_batch_size=MAX_BATCH_SIZE)
    config.version_policy.specific.versions.append(PIPELINE_VERSION)
    _add_tensors(config.input, pipeline.inputs, served.labels)
    _add_tensors(config.output, pipeline.outputs, served.labels)
    for step in pipeline.steps:
        message = config.ensemble_scheduling.step.add(
            model_name=step.stage.name, model_version=served.pins.get(step.stage.name, 1)
        )
        message.input_map.update(step.inputs)
        message.output_map.update(step.outputs)
    for key, value in served.parameters.items():
        config.parameters[key].string_value = value
    return config


def bucket_shapes(stage: Stage, sizes: Sizes = DEFAULT_SIZES) -> list[dict[str, tuple[int, ...]]]:
    """One set of input shapes (without batch) for each bucket of a stage, with the features of a release.

    A stage of several modalities walks along the buckets of all of them together; `fuse` then takes each smaller
    subset once, so that every bucket and every absence occurs, rather than in all 59 combinations.
    """
    of_release = sizes.axes()
    lengths = {axis.name: of_release.get(axis.name, axis).sizes for spec in stage.inputs for axis in spec.axes}
    absences: list[set[str]] = [set()]
    if stage.kind == FUSE.kind:
        absences += [{FEATURE_AXIS[m].name for m in MODALITIES if m not in subset} for subset in SUBSETS[1:]]
    longest = max(map(len, lengths.values()))
    picks = [{name: of[min(index, len(of) - 1)] for name, of in lengths.items()} for index in range(longest)]
    picks += [picks[-1] | dict.fromkeys(absent, ABSENT_TOKENS) for absent in absences[1:]]
    return [{spec.name: tuple(pick[axis.name] for axis in spec.axes) for spec in stage.inputs} for pick in picks]


def to_pbtxt(config: ModelConfig) -> str:
    """The configuration as text, one tensor, step or sample a line where it fits."""
    note = "# Generated from the tensor contract in ensembles/ (`make model-repository`); edit the contract instead.\n"
    ascii_text = text_format.MessageToString(config, as_utf8=False)  # no other line ends than its own are in it
    unindented = "\n".join(line.strip() for line in ascii_text.splitlines())
    return note + _compact(unindented)


def from_pbtxt(text: str) -> ModelConfig:
    """Parsed with Triton's own message. google.protobuf.text_format.ParseError when it isn't one."""
    return text_format.Parse(text, ModelConfig())


def _stage_base(stage: Stage, served: Served, max_batch_size: int, tuning: StageTuning) -> ModelConfig:
    config = ModelConfig(name=stage.name, max_batch_size=max_batch_size)
    config.version_policy.specific.versions.extend(served.versions.get(stage.name, (1,)))
    _add_tensors(config.input, stage.inputs, served.labels)
    _add_tensors(config.output, stage.outputs, served.labels)
    for tensor in config.input:
        tensor.optional = not stage.compiled
    for output in config.output:
        if output.name in ("logits", "probabilities"):
            output.label_filename = LABELS_FILE
    config.dynamic_batching.max_queue_delay_microseconds = tuning.queue_delay_us
    _add_warmup(config, stage, served.sizes or DEFAULT_SIZES)
    return config


def _add_tensors(target: Any, specs: Iterable[TensorSpec], labels: int) -> None:
    for spec in specs:
        target.add(name=spec.name, data_type=DATA_TYPES[spec.dtype], dims=resolved(spec, labels))


def _add_warmup(config: ModelConfig, stage: Stage, sizes: Sizes) -> None:
    """One sample for each bucket: zeros for an engine, where they are sound input, else a file of the warmup folder."""
    for index, shapes in enumerate(bucket_shapes(stage, sizes)):
        sample = config.model_warmup.add(name=f"bucket_{index}", batch_size=1)
        for spec in stage.inputs:
            tensor = sample.inputs[spec.name]
            tensor.data_type = DATA_TYPES[spec.dtype]
            tensor.dims.extend(shapes[spec.name])
            file = warmup_file(stage, spec, shapes)
            if file is None:
                tensor.zero_data = True
            else:
                tensor.input_data_file = file


def warmup_file(stage: Stage, spec: TensorSpec, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Name of the file that warms an input up, or None where zeros do.

    Zeros won't do for bytes, nor for a length or mask that a request must not leave empty.
    """
    if spec.dtype == "BYTES":
        return spec.name
    if stage.kind == "fuse" or spec.dtype == "FP32" or spec.name == "input_ids":
        return None
    length = "input_values" if spec.name == "num_samples" else spec.name
    return f"{spec.name}_{shapes[length][0]}"


def _compact(expanded: str) -> str:
    """Text format with every block that fits on one line; protobuf's printer offers all or nothing."""
    open_blocks: list[list[str]] = [[]]
    for line in expanded.splitlines():
        if line != "}" and not line.endswith("{"):
            open_blocks[-1].append(line)
        elif line.endswith("{"):
            open_blocks.append([line])
        else:
            head, *body = open_blocks.pop()
            joined = f"{head} {' '.join(body)} }}"
            if len(joined) + 2 * len(open_blocks) <= LINE_WIDTH and "\n" not in joined:
                open_blocks[-1].append(joined)
            else:
                inner = "\n".join(body).replace("\n", "\n  ")
                open_blocks[-1].append(f"{head}\n  {inner}\n}}")
    return "\n".join(open_blocks[0]) + "\n"
