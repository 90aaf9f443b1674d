"""Traps of ensembles, seen from their configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cmt_server.doctor.finding import Finding, Rule, Versions, finding
from cmt_server.doctor.graph import member, parallel_steps, refusals, step_name, steps_of
from cmt_server.doctor.repository import Repository

REFUSAL_BESIDE_SIBLING = Rule(
    "refusal-beside-sibling",
    "error",
    "When a step refuses a request while a parallel step works on it, the server crashes (full queue) or the request "
    "is never released (time-out): the ensemble can't be unloaded any more.",
    "Refuse before the fan-out: give max_queue_size and time-outs to a first step, a last one, or a proxy in front.",
    Versions(last=(2, 68)),
)
FLOATING_STEP_VERSION = Rule(
    "floating-step-version",
    "warning",
    "While several models are upgraded one after the other, model_version -1 makes answers from old and new versions "
    "at once.",
    "Pin every step; upgrade by loading the new versions beside the old ones, then the ensemble with new pins.",
)
STEP_VERSION_MISSING = Rule(
    "step-version-missing",
    "error",
    "A step without a model_version means version 0: without a folder of that name Triton doesn't load the ensemble.",
    "Write model_version: a number, or -1 for the newest.",
)
EXPOSED_INTERMEDIATE = Rule(
    "exposed-intermediate",
    "warning",
    "A request for some of the outputs fails with 'unexpected deadlock' when an output also feeds another step.",
    "Serve the intermediate tensor through an ensemble of its own, or have the step copy it to a second output.",
)
STALE_ENSEMBLE_CACHE = Rule(
    "stale-ensemble-cache",
    "error",
    "The key of an ensemble's cached answer has the ensemble's version, not its steps': after a step changes, old "
    "answers go on coming.",
    "Turn response_cache off, or give the ensemble a new version with every change of a step.",
)
ENSEMBLE_SETTINGS = Rule(
    "ensemble-settings",
    "error",
    "Triton doesn't load an ensemble with instance_group, optimization or model_warmup: it runs nothing itself.",
    "Move them to the models of its steps.",
)
ENSEMBLE_RAGGED = Rule(
    "ensemble-ragged-batch",
    "warning",
    "allow_ragged_batch does nothing on an ensemble: requests of unequal shapes still run one by one.",
    "Set it on the input of the model that batches, if its backend takes ragged batches; else pad to few lengths.",
)
STEP_WITHOUT_INPUT = Rule(
    "step-without-input",
    "error",
    "A request that leaves out all optional inputs of a batching step fails with 'request has 0 inputs': steps have no "
    "conditions.",
    "Make an ensemble for each set of inputs, or feed the step an input that is always there.",
)
STEP_UNAVAILABLE = Rule(
    "step-unavailable",
    "error",
    "Triton doesn't load an ensemble, and takes down one that it reloads, when a step's model or version isn't loaded.",
    "Put the version into the repository and let the model's version_policy load it, or change the step.",
)


def refusal_beside_sibling(repository: Repository) -> Iterator[Finding]:
    for ensemble in repository.ensembles:
        for index, others in sorted(parallel_steps(ensemble).items()):
            model = member(repository, steps_of(ensemble)[index])
            beside = ", ".join(step_name(ensemble, other) for other in others[:3])
            for refusal in refusals(repository, model) if model else ():
                what = f"{step_name(ensemble, index)} runs beside {beside}; {refusal}"
                yield finding(REFUSAL_BESIDE_SIBLING, ensemble.file, ensemble.name, what)


def floating_step_version(repository: Repository) -> Iterator[Finding]:
    """Of two steps or more: an answer of one step can't mix versions."""
    for ensemble in repository.ensembles:
        steps = steps_of(ensemble)
        floating = [step_name(ensemble, index) for index, step in enumerate(steps) if step.model_version == -1]
        if floating and len({step.model_name for step in steps}) > 1:
            what = f"model_version is -1 at {', '.join(floating)}"
            yield finding(FLOATING_STEP_VERSION, ensemble.file, ensemble.name, what)


def step_version_missing(repository: Repository) -> Iterator[Finding]:
    for ensemble in repository.ensembles:
        for index, step in enumerate(steps_of(ensemble)):
            model = member(repository, step)
            if step.model_version == 0 and not (model and 0 in model.loaded_versions()):
                what = f"{step_name(ensemble, index)} has no model_version"
                yield finding(STEP_VERSION_MISSING, ensemble.file, ensemble.name, what)


def exposed_intermediate(repository: Repository) -> Iterator[Finding]:
    for ensemble in repository.ensembles:
        outputs = {output.name for output in ensemble.config.output}
        if len(outputs) < 2:
            continue
        for index, step in enumerate(steps_of(ensemble)):
            for tensor in sorted(outputs & set(step.input_map.values())):
                what = f"output {tensor!r} is an input of {step_name(ensemble, index)} too"
                yield finding(EXPOSED_INTERMEDIATE, ensemble.file, ensemble.name, what)


def stale_ensemble_cache(repository: Repository) -> Iterator[Finding]:
    for ensemble in repository.ensembles:
        if ensemble.config.response_cache.enable:
            yield finding(STALE_ENSEMBLE_CACHE, ensemble.file, ensemble.name, "response_cache is on for an ensemble")


def ensemble_settings(repository: Repository) -> Iterator[Finding]:
    for ensemble in repository.ensembles:
        config = ensemble.config
        present = {
            "instance_group": len(config.instance_group) > 0,
            "optimization": config.HasField("optimization"),
            "model_warmup": len(config.model_warmup) > 0,
        }
        for name in (name for name, there in present.items() if there):
            yield finding(ENSEMBLE_SETTINGS, ensemble.file, ensemble.name, f"{name} is set on an ensemble")


def ensemble_ragged(repository: Repository) -> Iterator[Finding]:
    for ensemble in repository.ensembles:
        for tensor in ensemble.config.input:
            if tensor.allow_ragged_batch:
                what = f"allow_ragged_batch is set on input {tensor.name!r}"
                yield finding(ENSEMBLE_RAGGED, ensemble.file, ensemble.name, what)


def step_without_input(repository: Repository) -> Iterator[Finding]:
    """A request that names nothing at all is at fault itself: other inputs must make it a sensible one."""
    for ensemble in repository.ensembles:
        optional = {tensor.name for tensor in ensemble.config.input if tensor.optional}
        every = {tensor.name for tensor in ensemble.config.input}
        for index, step in enumerate(steps_of(ensemble)):
            model, taken = member(repository, step), set(step.input_map.values())
            batching = model is not None and model.config.max_batch_size > 0
            if batching and taken and taken <= optional and every - taken:
                what = f"{step_name(ensemble, index)} has no input in a request without {', '.join(sorted(taken))}"
                yield finding(STEP_WITHOUT_INPUT, ensemble.file, ensemble.name, what)


def step_unavailable(repository: Repository) -> Iterator[Finding]:
    for ensemble in repository.ensembles:
        for index, step in enumerate(steps_of(ensemble)):
            missing = _missing(repository, step.model_name, step.model_version)
            if missing and not step.model_namespace:
                what = f"{step_name(ensemble, index)}: {missing}"
                yield finding(STEP_UNAVAILABLE, ensemble.file, ensemble.name, what)


def _missing(repository: Repository, name: str, version: int) -> str:
    """What a step lacks; "" when nothing, or when that isn't known."""
    if not repository.has(name):
        return "its model isn't in the repository"
    model = repository.models.get(name)
    if model is None or model.versions is None:
        return ""
    loaded = model.loaded_versions()
    if not loaded:
        return "no version of its model is loaded"
    if version < 1 or version in loaded:
        return ""
    listed = ", ".join(map(str, loaded))
    if version in model.versions:
        return f"version {version} lies there, but version_policy loads {listed}"
    return f"version {version} isn't there; version_policy loads {listed}"


CHECKS: dict[Rule, Callable[[Repository], Iterator[Finding]]] = {
    REFUSAL_BESIDE_SIBLING: refusal_beside_sibling,
    FLOATING_STEP_VERSION: floating_step_version,
    STEP_VERSION_MISSING: step_version_missing,
    STEP_UNAVAILABLE: step_unavailable,
    EXPOSED_INTERMEDIATE: exposed_intermediate,
    STEP_WITHOUT_INPUT: step_without_input,
    STALE_ENSEMBLE_CACHE: stale_ensemble_cache,
    ENSEMBLE_SETTINGS: ensemble_settings,
    ENSEMBLE_RAGGED: ensemble_ragged,
}
