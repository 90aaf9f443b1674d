"""The Cross-Modal Transformer against its baselines over several seeds: same encoders, same data, same budget.

For each seed the three encoders are trained once, jointly, each under a light head of its own that sees its modality
alone. Then they are frozen, and every model (each modality alone, late fusion, concatenation, conventional transformer,
CMT) is trained on their features: same items in the same order, same optimizer, same most epochs, same stopping rule,
its temperature set on the validation split. The test split is read once, at the end.

    WORK/…/seed-0/encoders/       how far the encoders' training is
    WORK/…/seed-0/cmt.json        a model's figures; what has one isn't trained again
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from cmt_export.baselines import LateFusion, fusion_of
from cmt_export.checkpoint import checkpoint_from_preset
from cmt_export.model import CrossModalTransformer
from cmt_pipeline.labels import labels_of
from cmt_pipeline.presets import preset_of
from cmt_pipeline.progress import Progress, part_of
from cmt_release.durable import replace_file
from cmt_release.typed_json import parsed, typed
from cmt_training.batches import Reader
from cmt_training.comparison import Comparison
from cmt_training.conditions import conditions
from cmt_training.encoded import given_encoders
from cmt_training.fitting import fit, task_of
from cmt_training.metrics import Metrics, metrics_of, softmax
from cmt_training.options import MODELS, Model, TrainOptions
from cmt_training.predict import predict
from cmt_training.prepare import Prepared
from cmt_training.statistics import Difference, Interval, claim_of, interval_of, paired, percent
from cmt_training.train import FEATURES, calibrate, encoders_first, opened, start_as, trainee_of
from cmt_training.trainee import modalities_of

#: What the paper's abstract claims over strong multimodal baselines (arXiv 2601.14259).
CLAIMED_PERCENT = {"weighted_f1": 3.0, "cross_entropy": -12.9}
METHOD = (
    "Per seed, the encoders are trained once, each under a light head of its own; every model then starts from what it "
    "shares with those heads and is trained on the encoders' frozen features with the same items, order, optimizer, "
    "epochs and stopping rule. Temperatures are set on the validation split; figures are of the test split; intervals "
    "are 95 %, Student's t over seeds, differences paired."
)


@dataclass(frozen=True)
class CompareOptions:
    """training: of every model; its `model` and `seed` are set for each run."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    training: TrainOptions = TrainOptions()  # noqa: RUF009  # frozen

    def __post_init__(self) -> None:
        if len(set(self.seeds)) < 2:
            raise ValueError(f"seeds: got {list(self.seeds)}; expected two or more different ones")


@dataclass(frozen=True)
class Run:
    """One model and seed: its test figures, and how many epochs its best weights took."""

    metrics: Metrics
    temperature: float
    best_epoch: int
    seconds: float
    fusion_parameters: int


def compare(data: Prepared, options: CompareOptions, work: Path, progress: Progress) -> Comparison:
    """Trains and measures every model for every seed; what `work` holds of the same recipe isn't done again."""
    recipe = {"options": asdict(options) | {"seeds": None}, "data": data.folder.name, "torch": torch.__version__}
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]
    runs: dict[Model, list[Run]] = {model: [] for model in MODELS}
    share = 1 / len(options.seeds)
    for number, seed in enumerate(options.seeds):
        folder = work / f"{data.name}-{digest}" / f"seed-{seed}"
        report = part_of(progress, number * share, (number + 1) * share, f"seed {seed}")
        seeded = _Seed(data, options, seed, folder, report)
        for model, run in seeded.runs().items():
            runs[model].append(run)
    return summary(data, options, runs)


def summary(data: Prepared, options: CompareOptions, runs: Mapping[Model, list[Run]]) -> Comparison:
    """Runs of every model, one a seed in the same order -> the comparison."""
    models: dict[str, Mapping[str, Interval]] = {model: _intervals(found) for model, found in runs.items()}
    baselines = {name: found for name, found in models.items() if name != "cmt"}
    ours = models["cmt"]
    return Comparison(
        data=data.name,
        preset=options.training.preset,
        seeds=options.seeds,
        method=METHOD,
        models=models,
        fusion_parameters={model: found[0].fusion_parameters for model, found in runs.items()},
        differences={
            name: Difference(
                paired(ours["weighted_f1"], found["weighted_f1"]),
                paired(ours["cross_entropy"], found["cross_entropy"]),
                percent(ours["weighted_f1"], found["weighted_f1"]),
                percent(ours["cross_entropy"], found["cross_entropy"]),
            )
            for name, found in baselines.items()
        },
        verdict={
            measure: claim_of(
                measure,
                claimed,
                ours[measure],
                [(n, found[measure]) for n, found in baselines.items()],
            )
            for measure, claimed in CLAIMED_PERCENT.items()
        },
        conditions=conditions(
            data=data.folder.name,
            notes=list(data.notes),
            items={split: len(data.of(split)) for split in ("train", "validation", "test")},
            seeds=list(options.seeds),
            options=asdict(options.training),
            training_seconds=round(sum(run.seconds for found in runs.values() for run in found)),
        ),
    )


class _Seed:
    """All models of one seed."""

    def __init__(self, data: Prepared, options: CompareOptions, seed: int, folder: Path, progress: Progress) -> None:
        self.data, self.folder, self.progress = data, folder, progress
        self.labels = len(labels_of(data.label_set))
        self.options = replace(options.training, seed=seed)

    def runs(self) -> dict[Model, Run]:
        if any(not self._file(model).is_file() for model in MODELS):
            reader, heads = self._features()
            for model in MODELS:
                if not self._file(model).is_file():
                    self._write(model, self._run(model, reader, heads))
        shutil.rmtree(self.folder / FEATURES, ignore_errors=True)
        return {model: typed(Run, parsed(self._file(model).read_text()), str(self._file(model))) for model in MODELS}

    def _features(self) -> tuple[Reader, LateFusion]:
        """Of what trained encoders make of every item; the heads under which they learnt."""
        options = self.options
        checkpoint = checkpoint_from_preset(options.preset, self.data.label_set, model="late", seed=options.seed)
        report = part_of(self.progress, 0, 0.5, "encoders")
        ready = opened(checkpoint, self.data, options, report)
        return encoders_first(checkpoint.model, ready, self.data, options, self.folder, report, resume=True)

    def _run(self, model: Model, reader: Reader, heads: LateFusion) -> Run:
        options = replace(self.options, model=model)
        torch.manual_seed(options.seed)
        fusion = fusion_of(model, preset_of(options.preset).fusion, self.labels)
        start_as(fusion, heads)
        learning = CrossModalTransformer(given_encoders(), fusion)
        trainee = trainee_of(learning, reader, self.data, options, features=True)
        task = task_of(trainee, reader, self.data, options)
        start = 0.5 + MODELS.index(model) / (2 * len(MODELS))
        report = part_of(self.progress, start, start + 0.5 / len(MODELS), model)
        state = fit(task, options, self.folder / model, report, resume=True)
        only = modalities_of(model)
        temperature = calibrate(trainee.model, reader, task.validation, only)
        found = predict(trainee.model, reader, self.data.of("test"), only=only)
        return Run(
            metrics_of(softmax(found.logits, temperature), found.labels),
            temperature,
            state.best_epoch,
            sum(row["seconds"] for row in state.history),
            sum(parameter.numel() for parameter in fusion.parameters()),
        )

    def _file(self, model: Model) -> Path:
        return self.folder / f"{model}.json"

    def _write(self, model: Model, run: Run) -> None:
        replace_file(self._file(model), (json.dumps(asdict(run), indent=1) + "\n").encode(), self.folder)
        shutil.rmtree(self.folder / model, ignore_errors=True)


def _intervals(runs: list[Run]) -> dict[str, Interval]:
    return {name: interval_of([run.metrics[name] for run in runs]) for name in runs[0].metrics if name != "count"}
