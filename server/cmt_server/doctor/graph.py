"""The graph of an ensemble: what its steps produce and wait for, and which may run at the same time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cmt_server.doctor.repository import Model, Repository

LONGEST_WAY = 10  # names of ensembles that a finding lists


def steps_of(ensemble: Model) -> list[Any]:
    """The steps' messages, in the order of the configuration."""
    return list(ensemble.config.ensemble_scheduling.step)


def step_name(ensemble: Model, index: int) -> str:
    """How findings name a step: by its place, counted from 1, and its model."""
    return f"step {index + 1} ({steps_of(ensemble)[index].model_name})"


def member(repository: Repository, step: Any) -> Model | None:
    """The configuration of a step's model, if it was read."""
    return repository.models.get(step.model_name)


def parallel_steps(ensemble: Model) -> dict[int, list[int]]:
    """Index of each step -> indices of the steps that neither wait for it nor are waited for, where there are any."""
    before = _ancestors(ensemble)
    parallel = {
        step: [other for other in before if other != step and other not in before[step] and step not in before[other]]
        for step in before
    }
    return {step: others for step, others in parallel.items() if others}


def in_order(ensemble: Model) -> list[int]:
    """Indices of the steps, each after those that it waits for."""
    before = _ancestors(ensemble)
    return sorted(before, key=lambda index: len(before[index]))


def waiting_for_themselves(ensemble: Model) -> list[int]:
    """Indices of the steps that wait for an output of their own, directly or through other steps."""
    return [index for index, before in _ancestors(ensemble).items() if index in before]


def circular_ensembles(repository: Repository) -> dict[str, tuple[list[str], bool]]:
    """Ensembles whose members lead into a circle -> the way there, its first names; whether it is above the circle."""
    names = {ensemble.name for ensemble in repository.ensembles}
    below = {
        ensemble.name: {step.model_name for step in steps_of(ensemble)} & names for ensemble in repository.ensembles
    }
    leading = _endless(below)
    above: dict[str, set[str]] = {name: set() for name in leading}
    for name in leading:
        for inner in below[name] & leading:
            above[inner].add(name)
    circling = _endless(above)
    return {name: (_way(name, below, leading), name not in circling) for name in sorted(leading)}


def _endless(edges: Mapping[str, set[str]]) -> set[str]:
    """The nodes from which one can walk on for ever: what is left once all that lead nowhere are gone."""
    left = {node: len(targets) for node, targets in edges.items()}
    sources: dict[str, list[str]] = {node: [] for node in edges}
    for node, targets in edges.items():
        for target in targets:
            sources[target].append(node)
    ended = [node for node, count in left.items() if not count]
    for node in ended:  # grows meanwhile
        del left[node]
        for source in sources[node]:
            left[source] -= 1
            if not left[source]:
                ended.append(source)
    return set(left)


def _way(name: str, below: Mapping[str, set[str]], leading: set[str]) -> list[str]:
    """From an ensemble on through members that lead into a circle, until one comes again or the way is long."""
    way = [name]
    while len(way) < LONGEST_WAY and way[-1] not in way[:-1]:
        way.append(min(below[way[-1]] & leading))
    return way


def refusals(repository: Repository, model: Model) -> Iterator[str]:
    """Settings by which a model, or a member of it when it is an ensemble, turns requests away."""
    for inner in _models_within(repository, model):
        for place, policy in queue_policies(inner):
            if policy.max_queue_size:
                yield f"{inner.name}: {place} has max_queue_size {policy.max_queue_size}"
            if policy.default_timeout_microseconds and policy.timeout_action == policy.REJECT:
                yield f"{inner.name}: {place} rejects after {policy.default_timeout_microseconds} us"


def queue_policies(model: Model) -> Iterator[tuple[str, Any]]:
    """Where each queue policy of a model stands, and its message."""
    batching = model.config.dynamic_batching
    yield "default_queue_policy", batching.default_queue_policy
    for level in sorted(batching.priority_queue_policy):
        yield f"priority_queue_policy {level}", batching.priority_queue_policy[level]


def _models_within(repository: Repository, model: Model) -> Iterator[Model]:
    """The models that do the work: itself, or those that an ensemble leads to."""
    waiting, seen = [model], {model.name}
    while waiting:
        current = waiting.pop()
        if not current.is_ensemble:
            yield current
        for step in steps_of(current):
            inner = member(repository, step)
            if inner is not None and inner.name not in seen:
                seen.add(inner.name)
                waiting.append(inner)


def _ancestors(ensemble: Model) -> dict[int, set[int]]:
    """Index of each step -> the steps that it waits for, directly or not. Ends for a graph with cycles too."""
    steps = steps_of(ensemble)
    producers = {tensor: index for index, step in enumerate(steps) for tensor in step.output_map.values()}
    direct = {
        index: {producers[tensor] for tensor in step.input_map.values() if tensor in producers}
        for index, step in enumerate(steps)
    }
    return {index: _reachable(index, direct) for index in direct}


def _reachable(start: int, edges: dict[int, set[int]]) -> set[int]:
    found: set[int] = set()
    waiting = list(edges[start])
    while waiting:
        index = waiting.pop()
        if index not in found:
            found.add(index)
            waiting += edges[index]
    return found
