"""Traps of single models, seen from their configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tritonclient.grpc.model_config_pb2 import DataType

from cmt_server.doctor.finding import Finding, Rule, finding
from cmt_server.doctor.graph import queue_policies
from cmt_server.doctor.repository import Repository

#: These batch by themselves, whatever Triton's scheduler does.
OWN_BATCHING = ("tensorrtllm", "vllm")

TIMEOUT_OVERRIDE = Rule(
    "timeout-override-without-default",
    "warning",
    "A request's time-out counts only where it is shorter than default_timeout_microseconds: with a default of 0 it is "
    "ignored.",
    "Give default_timeout_microseconds the longest time a request may wait, or keep deadlines in front of the server.",
)
CACHE_KEY = Rule(
    "cache-key",
    "error",
    "The key of a cached answer has the inputs' bytes but neither their shapes nor the outputs asked for: another "
    "request's answer comes back, in its shape and with its outputs.",
    "Turn response_cache off; it is safe for fixed shapes and one output alone.",
)
NO_WARMUP = Rule(
    "no-warmup",
    "warning",
    "The model is ready before its engine has run: the first request pays for loading, tuning and allocation.",
    "Add model_warmup with a sample of each usual shape.",
)
WARMUP_NEVER_RUNS = Rule(
    "warmup-never-runs",
    "warning",
    "Triton skips a warm-up sample without a batch_size, and says so in its verbose log alone.",
    "Write batch_size: 1, for models that don't batch too.",
)
ONE_WARMUP_LENGTH = Rule(
    "one-warmup-length",
    "warning",
    "The input's length varies, but every warm-up sample has the same: the first request of any other length pays.",
    "Add a sample for each length that is usual, or for each bucket.",
)
GRAPHS_WITHOUT_SPEC = Rule(
    "cuda-graphs-without-spec",
    "warning",
    "CUDA graphs are captured for listed shapes alone: an input of variable length needs graph_spec, else requests run "
    "without a graph, silently.",
    "List the usual shapes in optimization.cuda.graph_spec.",
)
WARMUP_WITHOUT_GRAPH = Rule(
    "warmup-without-graph",
    "warning",
    "The warm-up shows a shape to be usual that graph_spec doesn't list: its requests run without a CUDA graph, "
    "silently.",
    "Add the shape to optimization.cuda.graph_spec.",
)
BATCH_WITHOUT_BATCHER = Rule(
    "batch-without-batcher",
    "warning",
    "max_batch_size lets one request be a batch, but without a batcher requests are never put together. Triton's "
    "auto-complete adds one for ONNX Runtime, TensorRT, OpenVINO, TensorFlow and Paddle models alone: with it turned "
    "off, look at the running server.",
    "Add dynamic_batching { }, or set max_batch_size to 1 or 0.",
)
PREFERRED_BATCH_SIZE = Rule(
    "preferred-batch-size",
    "warning",
    "A batch is cut at a preferred size although more requests wait; it is meant for TensorRT's optimization profiles.",
    "Leave preferred_batch_size out and set max_queue_delay_microseconds alone.",
)
NO_VERSION = Rule(
    "no-version",
    "error",
    "Triton doesn't load a model of which no version is chosen, an ensemble neither; the repository index gives no "
    "reason. Folders of other names than plain numbers count for nothing.",
    "Put the model into a folder named 1 (empty for an ensemble), or let version_policy load what lies there.",
)
EMPTY_VERSION = Rule(
    "empty-version",
    "error",
    "Triton can't load a version whose folder has no model, nor the others that came with it. For a python model it "
    "waits for ever: the load doesn't end, and a server that starts with it never gets ready.",
    "Put the model's file there (model.py of the python backend), or remove the folder.",
)
VERSION_NEVER_LOADED = Rule(
    "version-never-loaded",
    "warning",
    "A request for it gets 404, and nothing says that the folder is left out.",
    "Let version_policy load it, or remove it. The default policy loads the newest version alone.",
)
POLICY_WITHOUT_VERSION = Rule(
    "policy-without-version",
    "warning",
    "Triton goes on without a version that version_policy names and that isn't there; only its log says so.",
    "Put the version into the repository, or take its number out.",
)


def timeout_override(repository: Repository) -> Iterator[Finding]:
    for model in repository.models.values():
        for place, policy in queue_policies(model):
            if policy.allow_timeout_override and not policy.default_timeout_microseconds:
                what = f"{place} has allow_timeout_override and no default_timeout_microseconds"
                yield finding(TIMEOUT_OVERRIDE, model.file, model.name, what)


def cache_key(repository: Repository) -> Iterator[Finding]:
    """Equal bytes in two shapes need two free dimensions, the batch among them."""
    for model in repository.models.values():
        config = model.config
        if not config.response_cache.enable:
            continue
        batch = int(config.max_batch_size > 1)
        free = [t.name for t in config.input if list(t.dims).count(-1) + batch > 1]
        if free:
            what = f"response_cache is on and equal bytes may have several shapes: {', '.join(free)}"
            yield finding(CACHE_KEY, model.file, model.name, what)
        if len(config.output) > 1:
            what = f"response_cache is on and there are {len(config.output)} outputs to choose from"
            yield finding(CACHE_KEY, model.file, model.name, what)


def no_warmup(repository: Repository) -> Iterator[Finding]:
    for model in repository.models.values():
        if not model.is_ensemble and not model.config.model_warmup:
            yield finding(NO_WARMUP, model.file, model.name, "there is no model_warmup")


def warmup_never_runs(repository: Repository) -> Iterator[Finding]:
    for model in repository.models.values():
        skipped = [repr(sample.name) for sample in model.config.model_warmup if not sample.batch_size]
        if skipped:
            what = f"warm-up sample {', '.join(skipped)} has no batch_size"
            yield finding(WARMUP_NEVER_RUNS, model.file, model.name, what)


def one_warmup_length(repository: Repository) -> Iterator[Finding]:
    for model in repository.models.values():
        for tensor in model.config.input:
            if -1 not in tensor.dims or tensor.data_type == DataType.TYPE_STRING:
                continue
            samples = [
                sample.inputs[tensor.name] for sample in model.config.model_warmup if tensor.name in sample.inputs
            ]
            shapes = {tuple(sample.dims) for sample in samples}
            if len(shapes) == 1:
                what = f"every warm-up sample of input {tensor.name!r} has shape {list(shapes.pop())}"
                yield finding(ONE_WARMUP_LENGTH, model.file, model.name, what)


def graphs_without_spec(repository: Repository) -> Iterator[Finding]:
    for model in repository.models.values():
        cuda = model.config.optimization.cuda
        free = [tensor.name for tensor in model.config.input if -1 in tensor.dims]
        if model.is_tensorrt and cuda.graphs and free and not cuda.graph_spec:
            what = f"cuda.graphs is on without graph_spec; variable: {', '.join(free)}"
            yield finding(GRAPHS_WITHOUT_SPEC, model.file, model.name, what)


def warmup_without_graph(repository: Repository) -> Iterator[Finding]:
    """A lower bound makes one graph serve many shapes: such models are left alone."""
    for model in repository.models.values():
        cuda = model.config.optimization.cuda
        if not (model.is_tensorrt and cuda.graphs and cuda.graph_spec):
            continue
        if any(spec.HasField("graph_lower_bound") for spec in cuda.graph_spec):
            continue
        free = [tensor.name for tensor in model.config.input if -1 in tensor.dims]
        captured = [{name: tuple(spec.input[name].dim) for name in spec.input} for spec in cuda.graph_spec]
        for sample in model.config.model_warmup:
            shapes = {name: tuple(sample.inputs[name].dims) for name in free if name in sample.inputs}
            if not any(shapes.items() <= spec.items() for spec in captured):
                what = f"no graph_spec has the shapes of warm-up sample {sample.name!r}: {_shapes(shapes)}"
                yield finding(WARMUP_WITHOUT_GRAPH, model.file, model.name, what)


def _shapes(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())


def batch_without_batcher(repository: Repository) -> Iterator[Finding]:
    for model in repository.models.values():
        config = model.config
        batches_itself = config.backend in OWN_BATCHING or config.model_transaction_policy.decoupled
        batches_itself = batches_itself or model.batching_completed
        if config.max_batch_size > 1 and config.WhichOneof("scheduling_choice") is None and not batches_itself:
            what = f"max_batch_size is {config.max_batch_size} and there is no dynamic_batching"
            yield finding(BATCH_WITHOUT_BATCHER, model.file, model.name, what)


def preferred_batch_size(repository: Repository) -> Iterator[Finding]:
    """The largest batch alone is what Triton itself fills in."""
    for model in repository.models.values():
        preferred = list(model.config.dynamic_batching.preferred_batch_size)
        if preferred and preferred != [model.config.max_batch_size] and not model.is_tensorrt:
            what = (
                f"preferred_batch_size is {preferred} on {model.config.platform or model.config.backend or 'a model'}"
            )
            yield finding(PREFERRED_BATCH_SIZE, model.file, model.name, what)


def no_version(repository: Repository) -> Iterator[Finding]:
    for model in repository.models.values():
        if model.versions is not None and not model.loaded_versions():
            there = ", ".join(map(str, model.versions))
            what = f"version_policy loads none of version {there}" if there else "there is no version's folder"
            yield finding(NO_VERSION, model.file, model.name, what)


def empty_version(repository: Repository) -> Iterator[Finding]:
    for model in repository.models.values():
        empty = [str(version) for version in model.loaded_versions() if version in model.empty]
        if empty and not model.is_ensemble:
            what = f"version {', '.join(empty)} has no model in its folder"
            yield finding(EMPTY_VERSION, model.file, model.name, what)


def version_never_loaded(repository: Repository) -> Iterator[Finding]:
    """An ensemble's version folders are empty, and its configuration is the same for all: those may lie there."""
    for model in repository.models.values():
        loaded = model.loaded_versions()
        if model.is_ensemble or not loaded:
            continue
        idle = [str(version) for version in model.versions or () if version not in loaded]
        if idle:
            listed = ", ".join(map(str, loaded))
            what = f"version {', '.join(idle)} lies there; version_policy loads {listed}"
            yield finding(VERSION_NEVER_LOADED, model.file, model.name, what)


def policy_without_version(repository: Repository) -> Iterator[Finding]:
    for model in repository.models.values():
        if model.versions is None or not model.loaded_versions():
            continue
        named = model.config.version_policy.specific.versions
        missing = [str(version) for version in sorted(set(named)) if version not in model.versions]
        if missing:
            what = f"version_policy names version {', '.join(missing)}, which isn't there"
            yield finding(POLICY_WITHOUT_VERSION, model.file, model.name, what)


CHECKS: dict[Rule, Callable[[Repository], Iterator[Finding]]] = {
    TIMEOUT_OVERRIDE: timeout_override,
    CACHE_KEY: cache_key,
    NO_VERSION: no_version,
    EMPTY_VERSION: empty_version,
    VERSION_NEVER_LOADED: version_never_loaded,
    POLICY_WITHOUT_VERSION: policy_without_version,
    NO_WARMUP: no_warmup,
    WARMUP_NEVER_RUNS: warmup_never_runs,
    ONE_WARMUP_LENGTH: one_warmup_length,
    GRAPHS_WITHOUT_SPEC: graphs_without_spec,
    WARMUP_WITHOUT_GRAPH: warmup_without_graph,
    BATCH_WITHOUT_BATCHER: batch_without_batcher,
    PREFERRED_BATCH_SIZE: preferred_batch_size,
}
