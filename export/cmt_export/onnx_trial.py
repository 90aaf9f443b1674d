"""What given graphs compute, tried on samples by ONNX Runtime: shapes at every length and batch, and that an item's
answer is its own, whatever it is padded with and whoever shares its batch.

A graph that was made elsewhere has no other reference than itself, so these are the promises that it can break unseen.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from cmt_engine.engine import Runner
from cmt_export.onnx_checks import first_line
from cmt_export.parity import wired
from cmt_export.samples import Batch
from cmt_pipeline.buckets import AUDIO_SAMPLES, TEXT_TOKENS, bucket_for
from cmt_pipeline.modality import MODALITIES, SUBSETS, Modality
from cmt_pipeline.stages import COMPILED_STAGES, FUSE, READY, STAGES, Stage
from cmt_pipeline.tensors import Array, Arrays, Sizes

#: Of what rounding may change: products of other shapes are summed in another order, in fp16 by so much.
RELATIVE, ABSOLUTE = 1e-3, 1e-3

PADDED: dict[Modality, tuple[str, tuple[int, ...]]] = {
    "audio": ("input_values", AUDIO_SAMPLES),
    "text": ("input_ids", TEXT_TOKENS),
}


@dataclass
class Trial:
    """Found so far: each fault once, and how many tokens of what width the encoders make of each length."""

    faults: list[str] = field(default_factory=list)
    tokens: dict[Modality, set[int]] = field(default_factory=dict)
    widths: dict[Modality, int] = field(default_factory=dict)

    def add(self, stage: Stage, fault: str) -> None:
        told = f"{stage.name}.onnx: {fault}"
        if told not in self.faults:
            self.faults.append(told)

    @property
    def sizes(self) -> Sizes:
        tokens = {m: tuple(sorted(found)) for m, found in self.tokens.items()}
        return Sizes(**tokens, width=next(iter(self.widths.values())))


def tried(runners: Mapping[str, Runner], batches: Sequence[Batch], labels: int, vocabulary: int) -> Trial:
    """The graphs that there are of the stages, run on batches. vocabulary: token ids are below it."""
    trial = Trial()
    encoded: list[dict[Modality, dict[str, Array]]] = [{} for _ in batches]
    for m in MODALITIES:
        stage = STAGES[f"encode_{m}"]
        if stage.name in runners and (m != "text" or _takes(trial, runners[stage.name], vocabulary)):
            _try_encoder(trial, stage, runners[stage.name], batches, encoded)
    if len(set(trial.widths.values())) > 1:
        told = ", ".join(f"{m} {width}" for m, width in trial.widths.items())
        trial.add(FUSE, f"got features of several widths ({told}); expected one: project them in the encoders")
    elif {stage.name for stage in COMPILED_STAGES} == runners.keys() and not trial.faults:
        for index, batch in enumerate(encoded):
            _try_fuse(trial, runners[FUSE.name], {m: batch[m] for m in SUBSETS[index % len(SUBSETS)]}, labels)
    return trial


def _try_encoder(
    trial: Trial,
    stage: Stage,
    runner: Runner,
    batches: Sequence[Batch],
    encoded: list[dict[Modality, dict[str, Array]]],
) -> None:
    m = stage.modality
    assert m is not None
    for batch, kept in zip(batches, encoded, strict=True):
        inputs = {spec.name: batch.tensors[spec.name] for spec in READY[m]}
        outputs = _run(trial, stage, runner, inputs)
        if outputs is None:
            return
        kept[m] = outputs
        faults = list(_feature_faults(m, inputs, outputs))
        if not faults:
            faults = list(_encoder_changes(trial, stage, runner, inputs, outputs))
        for fault in faults:
            trial.add(stage, fault)
        if faults:
            return
    item = {spec.name: batches[0].tensors[spec.name][:1] for spec in READY[m]}
    for inputs in (_fitted(m, item, bucket) for bucket in PADDED[m][1]) if m in PADDED else (item,):
        outputs = _run(trial, stage, runner, inputs)
        if outputs is None:
            return
        tokens, width = outputs[f"{m}_features"].shape[1:]
        trial.tokens.setdefault(m, set()).add(tokens)
        if trial.widths.setdefault(m, width) != width:
            trial.add(stage, f"got features of {width} and of {trial.widths[m]}; expected one width")
            return


def _takes(trial: Trial, runner: Runner, vocabulary: int) -> bool:
    """Whether the text encoder knows every token of its tokenizer, or fails for another reason."""
    shape = (1, TEXT_TOKENS[0])
    mask = np.ones(shape, np.int64)
    with contextlib.suppress(Exception):  # of the runtime; what is wrong then is told for the shapes of real texts
        runner.run({"input_ids": np.zeros(shape, np.int64), "attention_mask": mask})
        try:
            runner.run({"input_ids": np.full(shape, vocabulary - 1), "attention_mask": mask})
        except Exception as error:
            told = f"doesn't take token {vocabulary - 1}, the last of {vocabulary}: is the tokenizer its own?"
            trial.add(STAGES["encode_text"], f"{told} {first_line(error)}")
            return False
    return True


def _run(trial: Trial, stage: Stage, runner: Runner, inputs: Arrays) -> dict[str, Array] | None:
    try:
        return runner.run(inputs)
    except Exception as error:  # of the runtime
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
        trial.add(stage, f"doesn't run on {shapes}: is a size fixed inside? {first_line(error)}")
        return None


def _feature_faults(m: Modality, inputs: Arrays, outputs: Arrays) -> Iterator[str]:
    features, mask = outputs[f"{m}_features"], outputs[f"{m}_mask"]
    batch = len(next(iter(inputs.values())))
    if features.ndim != 3 or len(features) != batch or mask.shape != features.shape[:2]:
        yield (
            f"got {m}_features {list(features.shape)} and {m}_mask {list(mask.shape)} for a batch of {batch}; expected "
            f"[{batch}, tokens, width] and [{batch}, tokens]"
        )
    elif not np.isin(mask, (0, 1)).all() or not mask.any(axis=1).all():
        yield f"got {m}_mask with other values than 0 and 1, or with no 1 for an item; expected 1 where tokens are real"
    elif not np.isfinite(features).all():
        yield f"got {m}_features with NaN or infinity; expected finite values, in padding too"
    elif any(outputs[name].any() for name in ("absent_features", "absent_mask")):
        yield "got absent_features or absent_mask other than zeros; leave these outputs out: they are made up"


def _encoder_changes(
    trial: Trial, stage: Stage, runner: Runner, inputs: dict[str, Array], outputs: Arrays
) -> Iterator[str]:
    """What others in its batch, and padding, change of an item's features."""
    m = stage.modality
    assert m is not None
    rows = [{name: array[row : row + 1] for name, array in inputs.items()} for row in range(len(outputs[f"{m}_mask"]))]
    for row, item in enumerate(rows if len(rows) > 1 else ()):
        alone = _run(trial, stage, runner, item)
        if alone and (changed := _change(m, alone, 0, outputs, row)) > RELATIVE:
            yield (
                f"an item's features differ by {changed:.2g} (relative) in a batch of {len(rows)} from those that it "
                f"gets alone; expected at most {RELATIVE}: normalise each item by itself, in evaluation mode"
            )
            break
    if m not in PADDED:
        return
    name, buckets = PADDED[m]
    own = buckets.index(bucket_for(min(_length(m, rows[0]), buckets[-2]), buckets))
    short = _fitted(m, rows[0], buckets[own])
    long = _fitted(m, short, buckets[own + 1])
    before, after = (_run(trial, stage, runner, item) for item in (short, long))
    if before and after and (changed := _change(m, before, 0, after, 0)) > RELATIVE:
        yield (
            f"an item's features differ by {changed:.2g} (relative) when {name} is padded from {short[name].shape[1]} "
            f"to {long[name].shape[1]}; expected at most {RELATIVE}: mask the padding in attention, statistics and "
            "convolutions"
        )


def _change(m: Modality, one: Arrays, row: int, other: Arrays, other_row: int) -> float:
    """Of an item's real features, relative; infinite where their number changes."""
    ours, theirs = (
        outputs[f"{m}_features"][index][outputs[f"{m}_mask"][index].astype(bool)].astype(np.float64)
        for outputs, index in ((one, row), (other, other_row))
    )
    if ours.shape != theirs.shape:
        return float("inf")
    return float(np.sqrt(np.mean((ours - theirs) ** 2) / max(np.mean(ours**2), 1e-30)))


def _length(m: Modality, item: Arrays) -> int:
    return int(item["num_samples"][0, 0] if m == "audio" else item["attention_mask"].sum())


def _fitted(m: Modality, item: dict[str, Array], bucket: int) -> dict[str, Array]:
    """The item cut or padded to a bucket."""
    fitted = {
        key: array if array.shape[1] == 1 else np.pad(array[:, :bucket], ((0, 0), (0, max(0, bucket - array.shape[1]))))
        for key, array in item.items()
    }
    return fitted | ({"num_samples": np.minimum(item["num_samples"], bucket)} if m == "audio" else {})


def _try_fuse(trial: Trial, runner: Runner, encoded: Mapping[Modality, Arrays], labels: int) -> None:
    inputs = wired(encoded)
    outputs = _run(trial, FUSE, runner, inputs)
    if outputs is None:
        return
    faults = list(_answer_faults(outputs, tuple(encoded), labels, len(next(iter(inputs.values())))))
    if not faults:
        faults = list(_fuse_changes(trial, runner, inputs, outputs))
    for fault in faults:
        trial.add(FUSE, fault)


def _answer_faults(outputs: Arrays, subset: tuple[Modality, ...], labels: int, batch: int) -> Iterator[str]:
    for spec in FUSE.outputs:
        wanted = [batch, *(axis.dim if axis.sizes else labels for axis in spec.axes)]
        array = outputs[spec.name]
        if list(array.shape) != wanted:
            hint = ": the description names that many labels" if spec.name in ("logits", "probabilities") else ""
            yield f"got {spec.name} {list(array.shape)}; expected {wanted}{hint}"
            return
        if not np.isfinite(array).all():
            yield f"got {spec.name} with NaN or infinity for {' + '.join(subset)}; expected finite values"
            return
    probabilities, attention = outputs["probabilities"], outputs["attention"]
    if probabilities.min() < -ABSOLUTE or np.abs(probabilities.sum(axis=1) - 1).max() > ABSOLUTE:
        yield f"got probabilities that add up to {probabilities.sum(axis=1)[0]:.3f}; expected 1: a softmax of logits"
    if np.abs(outputs["valence_arousal"]).max() > 1 + ABSOLUTE:
        yield f"got valence_arousal up to {np.abs(outputs['valence_arousal']).max():.3g}; expected -1 to 1"
    absent = [index for index, m in enumerate(MODALITIES) if m not in subset]
    off = np.abs(attention.sum(axis=1) - 1).max() > ABSOLUTE or (np.abs(attention[:, absent]) > ABSOLUTE).any()
    if off or attention.min() < -ABSOLUTE:
        yield (
            f"got attention {np.round(attention[0], 3).tolist()} for {' + '.join(subset)}; expected the share of each "
            f"of {', '.join(MODALITIES)}, together 1, and 0 of one whose mask is all 0"
        )


def _fuse_changes(trial: Trial, runner: Runner, inputs: dict[str, Array], outputs: Arrays) -> Iterator[str]:
    """What others in its batch, and what stands where a mask says 0, change of an item's answer."""
    batch = len(outputs["logits"])
    for row in range(batch if batch > 1 else 0):
        alone = _run(trial, FUSE, runner, {name: array[row : row + 1] for name, array in inputs.items()})
        if alone and (changed := _answer_change({k: v[row : row + 1] for k, v in outputs.items()}, alone)) > ABSOLUTE:
            yield (
                f"an item's answer differs by {changed:.2g} in a batch of {batch} from the one that it gets alone; "
                f"expected at most {ABSOLUTE}: normalise each item by itself, in evaluation mode"
            )
            break
    masked = _run(trial, FUSE, runner, _with_noise(inputs))
    if masked and (changed := _answer_change(outputs, masked)) > ABSOLUTE:
        yield (
            f"an answer differs by {changed:.2g} when features change whose mask is 0 (padding, or an absent "
            f"modality); expected at most {ABSOLUTE}: mask them in attention and pooling"
        )


def _with_noise(inputs: Arrays) -> dict[str, Array]:
    """The same with other features wherever the mask says 0, and one such token more."""
    rng = np.random.default_rng(0)
    changed = {}
    for m in MODALITIES:
        features, mask = inputs[f"{m}_features"], inputs[f"{m}_mask"]
        noise = rng.standard_normal(features.shape).astype(np.float32)
        changed[f"{m}_features"] = np.where(mask[..., None] == 1, features, noise)
        changed[f"{m}_mask"] = mask
    return changed


def _answer_change(one: Arrays, other: Arrays) -> float:
    names = ("probabilities", "valence_arousal", "attention")
    return max(float(np.abs(one[name].astype(np.float64) - other[name].astype(np.float64)).max()) for name in names)
