"""Traps in how an ensemble's steps fit together: tensors, shapes, batch sizes, circles.

As Triton's core checks them (ensemble_utils.cc), and what it lets through that fails at a request.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tritonclient.grpc.model_config_pb2 import DataType

from cmt_server.doctor.finding import Finding, Rule, finding
from cmt_server.doctor.graph import circular_ensembles, in_order, member, step_name, steps_of, waiting_for_themselves
from cmt_server.doctor.repository import Model, Repository

WIRING = Rule(
    "ensemble-wiring",
    "error",
    "Triton doesn't load an ensemble whose tensors don't join up; the repository index gives no reason.",
    "Every tensor has one producer, and the data type and shape of both its ends; every input and every step's output "
    "is used, every output produced, and no step waits for itself.",
)
BATCH_ABOVE_MEMBER = Rule(
    "ensemble-batch-above-member",
    "error",
    "Triton doesn't load an ensemble whose max_batch_size is above that of a step's model. A model that doesn't batch, "
    "with max_batch_size 0, is let in.",
    "Lower the ensemble's max_batch_size, or raise the member's.",
)
BATCH_STOPS = Rule(
    "batch-stops-at-member",
    "warning",
    "A request of several items fails with 'unexpected shape' at a step whose model has max_batch_size 0 and dims "
    "without room for the batch; a request of one item passes.",
    "Give the model a max_batch_size, or its dims a first -1 for the batch; else set the ensemble's max_batch_size "
    "to 1.",
)
CIRCLE = Rule(
    "circular-ensembles",
    "error",
    "Triton loads no ensemble of a circle, and the repository index gives no reason. An ensemble above a circle, not "
    "of it, ends the server as it starts: it follows the circle until its stack is full.",
    "Take one step out of the circle.",
)


@dataclass(frozen=True)
class _Tensor:
    """What one end of a tensor says of it. dims: without the batch; None where Triton completes them."""

    type: str
    dims: tuple[int, ...] | None
    batching: bool

    @property
    def full(self) -> tuple[int, ...]:
        return (-1,) * self.batching + (self.dims or ())

    def fits(self, other: _Tensor) -> bool:
        """Whether two ends may meet: with their batches left out, or counted as a dimension."""
        if self.dims is None or other.dims is None:
            return True
        return _same(self.dims, other.dims) or _same(self.full, other.full)


def wiring(repository: Repository) -> Iterator[Finding]:
    for ensemble in repository.ensembles:
        for what in (*_tensors_amiss(ensemble), *_maps_amiss(repository, ensemble)):
            yield finding(WIRING, ensemble.file, ensemble.name, what)


def _tensors_amiss(ensemble: Model) -> Iterator[str]:
    """Tensors of the ensemble that are produced never or twice, that nobody takes, or that wait for themselves."""
    inputs = [tensor.name for tensor in ensemble.config.input]
    outputs = {tensor.name for tensor in ensemble.config.output}
    produced = Counter(tensor for step in steps_of(ensemble) for tensor in step.output_map.values())
    taken = {tensor for step in steps_of(ensemble) for tensor in step.input_map.values()}
    for tensor in sorted(set(inputs) - taken):
        yield f"input {tensor!r} goes to no step"
    for tensor in sorted(outputs - set(produced)):
        yield f"output {tensor!r} comes from no step"
    for tensor, times in sorted(produced.items()):
        if times > 1:
            yield f"tensor {tensor!r} comes from {times} steps"
        if tensor not in taken | outputs:
            yield f"tensor {tensor!r} goes to no step and is no output"
    for index, step in enumerate(steps_of(ensemble)):
        for tensor in sorted(set(step.input_map.values()) - set(produced) - set(inputs)):
            yield f"{step_name(ensemble, index)} waits for tensor {tensor!r}, which nothing produces"
    for index in waiting_for_themselves(ensemble):
        yield f"{step_name(ensemble, index)} waits for its own output"


def _maps_amiss(repository: Repository, ensemble: Model) -> Iterator[str]:
    """Maps that don't fit a member's own tensors, where its configuration lists them."""
    met = _own_tensors(ensemble)
    for index, step in enumerate(steps_of(ensemble)):
        model = member(repository, step)
        for name, tensor, end in _ends(model, step) if model else ():
            where = step_name(ensemble, index)
            if end is None:
                yield f"{where}: its model has no {name}"
                continue
            before = met.setdefault(tensor, end)
            if before.type != end.type:
                yield f"{where}: tensor {tensor!r} is {before.type} elsewhere and {end.type} here"
            elif not before.fits(end):
                yield f"{where}: tensor {tensor!r} has shape {list(before.full)} elsewhere and {list(end.full)} here"
        for unmapped in model.config.input if model else ():
            if not unmapped.optional and unmapped.name not in step.input_map:
                yield f"{step_name(ensemble, index)}: input {unmapped.name!r} of its model is not mapped"


def _own_tensors(ensemble: Model) -> dict[str, _Tensor]:
    """The ensemble's inputs and outputs."""
    batching = ensemble.config.max_batch_size > 0
    own: dict[str, _Tensor] = {}
    for tensor in (*ensemble.config.input, *ensemble.config.output):
        dims = tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims
        own.setdefault(tensor.name, _Tensor(_data_type(tensor), tuple(dims), batching))
    return own


def _ends(model: Model, step: Any) -> Iterator[tuple[str, str, _Tensor | None]]:
    """(what the model calls it, tensor of the ensemble, the model's end of it) of each map; None: it has none."""
    batching = model.config.max_batch_size > 0
    for side, tensors, names in (
        ("input", model.config.input, step.input_map),
        ("output", model.config.output, step.output_map),
    ):
        declared = {
            tensor.name: _Tensor(_data_type(tensor), tuple(tensor.dims) or None, batching) for tensor in tensors
        }
        for name in sorted(names) if declared else ():
            yield f"{side} {name!r}", names[name], declared.get(name)


def _same(one: Sequence[int], other: Sequence[int]) -> bool:
    return len(one) == len(other) and all(a == b or -1 in (a, b) for a, b in zip(one, other, strict=True))


def _data_type(tensor: Any) -> str:
    """Name of a tensor's data type, such as TYPE_FP32."""
    number = tensor.data_type
    return str(DataType.Name(number)) if number in DataType.values() else str(number)


def batch_above_member(repository: Repository) -> Iterator[Finding]:
    for ensemble in repository.ensembles:
        batch = ensemble.config.max_batch_size
        for index, step in enumerate(steps_of(ensemble)):
            model = member(repository, step)
            if model is not None and 0 < model.config.max_batch_size < batch:
                took = f"that of its model {model.config.max_batch_size}"
                what = f"the ensemble's max_batch_size is {batch}, {took}: {step_name(ensemble, index)}"
                yield finding(BATCH_ABOVE_MEMBER, ensemble.file, ensemble.name, what)


def batch_stops(repository: Repository) -> Iterator[Finding]:
    """Not for models that Triton completes: it may give them a max_batch_size."""
    for ensemble in repository.ensembles:
        if ensemble.config.max_batch_size > 1:
            for index, name, end in _stopping(repository, ensemble):
                what = f"{step_name(ensemble, index)}: max_batch_size is 0 and {name} has dims {list(end.dims or ())}"
                yield finding(BATCH_STOPS, ensemble.file, ensemble.name, what)


def _stopping(repository: Repository, ensemble: Model) -> Iterator[tuple[int, str, _Tensor]]:
    """(step, its input, the model's end of it) where a batch can't go on, following it through the steps.

    A model that doesn't batch and has room gives the batch as a dimension. A batching model takes that for its batch,
    unless its own dims have the dimension: then Triton puts a batch of 1 in front.
    """
    met = _own_tensors(ensemble)
    batched, folded = {tensor.name for tensor in ensemble.config.input}, set[str]()  # how tensors carry the batch
    for index in in_order(ensemble):
        step = steps_of(ensemble)[index]
        model = member(repository, step)
        if model is None:
            continue
        inputs = [end for end in _ends(model, step) if end[0].startswith("input")]
        as_batch = False
        for name, tensor, end in inputs:
            if end is None or end.dims is None or tensor not in met:
                continue
            if end.batching:
                as_batch |= tensor in batched or (tensor in folded and not _same(met[tensor].full, end.dims))
            elif tensor in batched and not model.batching_completed and not _has_room(end.dims, met[tensor]):
                yield index, name, end
        met |= {tensor: end for _, tensor, end in _ends(model, step) if end is not None and tensor not in met}
        carries = as_batch or any(tensor in batched | folded for _, tensor, _ in inputs)
        (batched if as_batch else folded).update(step.output_map.values() if carries else ())


def _has_room(dims: tuple[int, ...], tensor: _Tensor) -> bool:
    return len(dims) == len(tensor.full) and dims[0] == -1


def circles(repository: Repository) -> Iterator[Finding]:
    for name, (way, above) in circular_ensembles(repository).items():
        crash = "; above the circle, not of it: the server dies as it starts" if above else ""
        yield finding(CIRCLE, repository.models[name].file, name, f"its steps lead {' -> '.join(way)}{crash}")


CHECKS: dict[Rule, Callable[[Repository], Iterator[Finding]]] = {
    WIRING: wiring,
    BATCH_ABOVE_MEMBER: batch_above_member,
    BATCH_STOPS: batch_stops,
    CIRCLE: circles,
}
