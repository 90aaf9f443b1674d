"""Parity: how far an engine is from the truth, PyTorch fp32, stage by stage and through whole pipelines.

A stage is fed what the truth gives it and compared where its mask says 1 (what padding holds concerns nobody). A
pipeline chains the engines' own outputs, so that it shows how errors add up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cmt_engine.engine import Engine, Precision, Runner
from cmt_export.samples import Batch
from cmt_pipeline.modality import MODALITIES, SUBSETS, Modality
from cmt_pipeline.pipelines import PIPELINES, pipeline_name
from cmt_pipeline.stages import FUSE, READY, STAGES, Stage
from cmt_pipeline.tensors import FEATURE_AXIS, Array, Arrays


class Truth(Protocol):
    """What engines are held against: the PyTorch model, or the graphs that were given without one."""

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Those that it reads."""

    def run_stage(self, stage: Stage, inputs: Arrays) -> dict[str, Array]:
        """Contract inputs [batch, ...] of a compiled stage, perhaps among others -> its contract outputs, fp32."""


@dataclass(frozen=True)
class ParityRow:
    """One line of the parity table. error is relative for a stage and absolute for a pipeline's probabilities."""

    what: str
    engine: str
    precision: Precision
    cases: int
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return bool(np.isfinite(self.error)) and self.error <= self.tolerance


class ParityError(RuntimeError):
    """An export missed its tolerance."""

    def __init__(self, rows: Sequence[ParityRow], truth: str = "PyTorch fp32") -> None:
        missed = "; ".join(
            f"{r.what} {r.engine} {r.precision}: {r.error:.2e} > {r.tolerance:.0e}" for r in rows if not r.passed
        )
        super().__init__(
            f"the export differs from {truth} by more than its tolerance ({missed}). "
            "Choose a higher --precision, or calibrate int8 with data of your own (--calibration)."
        )
        self.rows = tuple(rows)


#: Inputs of a stage and what the truth makes of them.
References = Sequence[tuple[Arrays, Arrays]]


def references(model: Truth, stage: Stage, batches: Sequence[Batch]) -> References:
    """What a stage's engines are compared with; made once for all of them."""
    return [(inputs, model.run_stage(stage, inputs)) for inputs in stage_inputs(model, stage, batches)]


def stage_parity(
    runner: Runner, engine: Engine, stage: Stage, precision: Precision, expected: References, name: str | None = None
) -> ParityRow:
    """The stage's largest relative error, under its engine's tolerance. name: for the table, where not the engine's."""
    errors = [_stage_error(stage, reference, runner.run(inputs)) for inputs, reference in expected]
    tolerance = engine.tolerance(precision).relative
    return ParityRow(stage.name, name or engine.name, precision, len(errors), _worst(errors), tolerance)


def pipeline_parity(
    runners: Mapping[str, Runner],
    engine: Engine,
    model: Truth,
    precision: Precision,
    batches: Sequence[Batch],
) -> list[ParityRow]:
    """One row for each subset of modalities: the largest difference of a probability."""
    offered = [subset for subset in SUBSETS if set(subset) <= set(model.modalities)]
    errors: dict[tuple[Modality, ...], list[float]] = {subset: [] for subset in offered}
    for batch in batches:
        reference = {m: model.run_stage(STAGES[f"encode_{m}"], batch.tensors) for m in MODALITIES}
        actual = {m: runners[f"encode_{m}"].run(ready_inputs(batch.tensors, [m])) for m in MODALITIES}
        for subset in offered:
            expected = model.run_stage(FUSE, wired({m: reference[m] for m in subset}))["probabilities"]
            got = runners["fuse"].run(wired({m: actual[m] for m in subset}))["probabilities"]
            errors[subset].append(float(np.abs(got.astype(np.float64) - expected.astype(np.float64)).max()))
    tolerance = engine.tolerance(precision).probability
    return [
        ParityRow(pipeline_name(subset), engine.name, precision, len(found), _worst(found), tolerance)
        for subset, found in errors.items()
    ]


def stage_inputs(model: Truth, stage: Stage, batches: Sequence[Batch]) -> Iterable[dict[str, Array]]:
    """What the stage is fed when the truth runs the stages before it; `fuse` meets absent modalities too."""
    for index, batch in enumerate(batches):
        if stage.modality is not None:
            yield {spec.name: batch.tensors[spec.name] for spec in stage.inputs}
        else:
            yield _fuse_inputs(model, batch.tensors, SUBSETS[index % len(SUBSETS)])


def ready_inputs(tensors: Arrays, subset: Iterable[Modality]) -> dict[str, Array]:
    """The ready tensors of some modalities."""
    return {spec.name: tensors[spec.name] for m in subset for spec in READY[m]}


def _fuse_inputs(model: Truth, tensors: Arrays, subset: Sequence[Modality]) -> dict[str, Array]:
    return wired({m: model.run_stage(STAGES[f"encode_{m}"], tensors) for m in subset})


def wired(encoded: Mapping[Modality, Arrays]) -> dict[str, Array]:
    """Outputs of the encoders that ran -> inputs of `fuse`, as the pipeline of these modalities joins them."""
    pipeline = PIPELINES[pipeline_name(encoded)]
    available = {name: array for outputs in encoded.values() for name, array in outputs.items()}
    return {name: available[source] for name, source in pipeline.steps[-1].inputs.items()}


def _stage_error(stage: Stage, expected: Arrays, actual: Arrays) -> float:
    """Largest relative error over the stage's floating outputs; infinite when a mask differs."""
    errors = []
    for spec in stage.outputs:
        reference, got = expected[spec.name], actual[spec.name]
        if spec.dtype == "INT64":
            if not np.array_equal(reference, got):
                return float("inf")
        elif spec.name != "absent_features":
            if spec.axes[0] in FEATURE_AXIS.values():
                real = expected[f"{stage.modality}_mask"].astype(bool)
                reference, got = reference[real], got[real]
            errors.append(_relative(reference, got))
        elif np.any(got):
            return float("inf")
    return _worst(errors)


def _worst(errors: Sequence[float]) -> float:
    """The largest, and NaN if any is: Python's own max() would pass over it."""
    return float(np.max(errors))


def _relative(expected: Array, actual: Array) -> float:
    if not expected.any():  # of a modality that has no encoder
        return float("inf") if actual.any() else 0.0
    reference = expected.astype(np.float64)
    return float(np.sqrt(np.mean((actual.astype(np.float64) - reference) ** 2) / np.mean(reference**2)))
