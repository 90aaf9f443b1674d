"""`cmt evaluate` and `cmt compare`: how good a checkpoint is, and what cross-modal attention is worth."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmt_cli.state import DEFAULT_STATE, State, StateOption
from cmt_cli.train import NO_PAIRS, DataArgument, LabelSetOption, PairOption, RootOption, prepared_data

if TYPE_CHECKING:
    from rich.table import Table

    from cmt_export.checkpoint import Checkpoint
    from cmt_pipeline.progress import Progress
    from cmt_training.compare.results import Ladder
    from cmt_training.evaluate import Curves
    from cmt_training.evaluation import Evaluation

COMPARE_STEPS = "Of every training, 128 items each; 1,200 by default."


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a trained checkpoint.")],
    data: DataArgument = None,
    root: RootOption = None,
    pair: PairOption = NO_PAIRS,
    out: Annotated[
        Path | None, typer.Option(help="Folder for report, figures and JSON; beside the checkpoint by default.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split: train, validation or test.")] = "test",
    label_set: LabelSetOption = None,
    summary: Annotated[Path | None, typer.Option(help="Also write the main figures to this JSON file.")] = None,
    curves: Annotated[bool, typer.Option(help="Also measure robustness, for a generated corpus.")] = True,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Measures how good a checkpoint is: F1, calibration, subsets of modalities, robustness.

    Example: [bold]cmt evaluate runs/mini corpus[/]
    """
    from cmt_cli.show import console, progress_bar
    from cmt_export.checkpoint import load_checkpoint
    from cmt_training.data import DataChoice
    from cmt_training.evaluate import evaluate as measure
    from cmt_training.examples import SPLITS
    from cmt_training.report import write_evaluation
    from cmt_training.train import how_it_was_trained

    chosen = {name: name for name in SPLITS}.get(split)  # type: ignore[call-overload]
    if chosen is None:
        raise ValueError(f"split: got {split!r}; expected one of {', '.join(SPLITS)}")
    opened = load_checkpoint(checkpoint)
    choice = DataChoice(data, root, tuple(pair))
    folder = out or checkpoint.with_name(f"{checkpoint.name}.evaluation")
    with progress_bar("evaluate") as progress:
        prepared = prepared_data(choice, opened, label_set or opened.config.label_set, State(state), progress)
        found = robustness(data, opened, State(state), progress) if curves and data else {}
        training = how_it_was_trained(checkpoint)
        evaluation = measure(opened, prepared, progress, split=chosen, curves=found, training=training)
    write_evaluation(evaluation, folder)
    if summary is not None:
        summary.parent.mkdir(parents=True, exist_ok=True)
        summary.write_text(json.dumps(evaluation.summary(), indent=1) + "\n")
    console.print(evaluation_table(evaluation))
    console.print(f"report, figures and JSON in {folder}", highlight=False)


def compare(
    data: DataArgument = None,
    root: RootOption = None,
    pair: PairOption = NO_PAIRS,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Folder of a checkpoint whose encoders read the data; the preset's by default.")
    ] = None,
    preset: Annotated[str, typer.Option(help="A preset, or its file, whose encoders read the data.")] = "mini",
    out: Annotated[Path, typer.Option(help="Folder for NAME.json and NAME/report.html.")] = Path("runs/compare"),
    seeds: Annotated[int, typer.Option(min=2, help="Number of seeds, from 0.")] = 5,
    steps: Annotated[int | None, typer.Option(min=1, help=COMPARE_STEPS)] = None,
    workers: Annotated[int, typer.Option(min=1, help="Trainings at a time, each on one core.")] = os.cpu_count() or 1,
    label_set: LabelSetOption = None,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Trains a ladder of fusions, cross-modal attention among them, on the same tokens for several seeds.

    It says what cross-modal attention is worth on these data. It continues where it was interrupted.

    Example: [bold]cmt compare corpus --seeds 5[/]
    """
    from cmt_cli.export import trained_weights
    from cmt_cli.show import console, progress_bar
    from cmt_export.checkpoint import checkpoint_from_preset, load_checkpoint
    from cmt_training.compare.data_set import compared
    from cmt_training.compare.learn import Budget
    from cmt_training.data import DataChoice
    from cmt_training.report import verdict_of, write_comparison

    weights = checkpoint or trained_weights(preset, "meld")
    opened = load_checkpoint(weights) if weights else checkpoint_from_preset(preset, label_set or "meld")
    choice, budget = DataChoice(data, root, tuple(pair)), Budget(steps=steps or Budget.steps)
    with progress_bar("compare") as progress:
        prepared = prepared_data(choice, opened, label_set, State(state), progress)
        work = State(state).root / "compare"
        results = compared(prepared, opened, tuple(range(seeds)), budget, work, workers, progress)
    path = out / f"{prepared.name}.json"
    write_comparison(results, out / prepared.name)
    path.write_text(results.to_json())
    for name, ladder in results.corpora.items():
        console.print(ladder_table(name, ladder))
        for sentence in verdict_of(ladder):
            console.print(sentence, highlight=False)
    console.print(f"written to {path}, report in {out / prepared.name}", highlight=False)


def robustness(folder: Path, checkpoint: Checkpoint, state: State, progress: Progress) -> Curves:
    """Test splits of the same generated corpus under one disturbance at a time; none for other data."""
    from cmt_training.data import DataChoice
    from cmt_training.disturbed import disturbed_corpora

    return {
        name: [(level, prepared_data(DataChoice(made), checkpoint, None, state, progress)) for level, made in points]
        for name, points in disturbed_corpora(folder, state.root / "corpora", progress).items()
    }


def evaluation_table(evaluation: Evaluation) -> Table:
    """Metrics before and after scaling, of every subset, and of each label."""
    from rich.table import Table

    from cmt_training.metrics import METRICS
    from cmt_training.report import metric_cells

    title = f"{evaluation.model} on {evaluation.data}, {evaluation.split}: temperature {evaluation.temperature:.3f}"
    titles = [metric.title for metric in METRICS.values()]
    table = Table("", *titles, "items", title=title, title_justify="left")
    rows = {"before temperature scaling": evaluation.uncalibrated, "calibrated": evaluation.calibrated}
    rows |= evaluation.subsets
    for name, metrics in rows.items():
        table.add_row(name, *metric_cells(metrics))
    for label, f1, support in zip(evaluation.labels, evaluation.f1, evaluation.support, strict=True):
        table.add_row(f"F1 of {label}", f"{f1:.4f}", *[""] * (len(titles) - 1), str(support))
    return table


def ladder_table(name: str, ladder: Ladder) -> Table:
    """Each rung with its intervals."""
    from rich.table import Table

    from cmt_training.compare.results import cells_of

    seeds = len(ladder.own.values)
    title = f"{name}, {ladder.items['test']} test items, {seeds} seeds: mean [95 % interval]"
    table = Table("fusion", "weighted F1", "cross-entropy", "ECE", title=title, title_justify="left")
    for rung, found in ladder.rungs.items():
        table.add_row(rung, *cells_of(found))
    return table
