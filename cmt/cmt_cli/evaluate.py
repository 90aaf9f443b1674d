"""`cmt evaluate` and `cmt compare`: how good a checkpoint is, and how much better than simpler models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cmt_cli.state import DEFAULT_STATE, State, StateOption
from cmt_cli.train import NO_PAIRS, DataArgument, LabelSetOption, PairOption, RootOption, prepared_data

if TYPE_CHECKING:
    from rich.table import Table

    from cmt_export.checkpoint import Checkpoint
    from cmt_pipeline.progress import Progress
    from cmt_training.comparison import Comparison
    from cmt_training.evaluate import Curves
    from cmt_training.evaluation import Evaluation

COMPARE_EPOCHS = "Most epochs of the encoders and of every fusion."


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
    out: Annotated[Path, typer.Option(help="Folder for NAME.json and the report.")] = Path("training/results"),
    seeds: Annotated[int, typer.Option(help="Number of seeds, from 0.")] = 5,
    preset: Annotated[str, typer.Option(help="Model sizes: mini or base.")] = "mini",
    label_set: LabelSetOption = None,
    epochs: Annotated[int | None, typer.Option(help=COMPARE_EPOCHS)] = None,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Trains the CMT and every baseline for several seeds, and compares them.

    It continues where it was interrupted.

    Example: [bold]cmt compare corpus --seeds 5[/]
    """
    from cmt_cli.show import console, progress_bar
    from cmt_training.compare import CompareOptions
    from cmt_training.compare import compare as measure
    from cmt_training.comparison import Comparison
    from cmt_training.data import DataChoice
    from cmt_training.report import verdict_of, write_comparison

    more: dict[str, Any] = {"preset": preset} | (
        {"epochs": epochs, "encoder_epochs": epochs} if epochs is not None else {}
    )
    usual = CompareOptions()
    options = CompareOptions(tuple(range(seeds)), replace(usual.training, **more))
    with progress_bar("compare") as progress:
        choice = DataChoice(data, root, tuple(pair))
        prepared = prepared_data(choice, preset, label_set, State(state), progress)
        comparison = measure(prepared, options, State(state).root / "compare", progress)
    path = out / f"{prepared.name}.json"
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(comparison.to_json())
    written = Comparison.from_json(path.read_text())
    write_comparison(written, out / prepared.name)
    console.print(comparison_table(written))
    console.print(f"{verdict_of(written)} Written to {path}, report in {out / prepared.name}", highlight=False)


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


def comparison_table(comparison: Comparison) -> Table:
    """Each model with its intervals, and how far the CMT is from each baseline."""
    from rich.table import Table

    title = f"{comparison.data}, test split, {len(comparison.seeds)} seeds: mean [95 % interval]"
    table = Table("model", "weighted F1", "cross-entropy", "ECE", "CMT minus it: F1", title=title, title_justify="left")
    differences: Mapping[str, Any] = comparison.differences
    for name, found in comparison.models.items():
        difference = str(differences[name].weighted_f1) if name in differences else ""
        table.add_row(name, *(str(found[metric]) for metric in ("weighted_f1", "cross_entropy", "ece")), difference)
    return table
