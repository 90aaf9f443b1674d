"""Reports: figures as PNG and one HTML page that holds everything, made of what the JSON says and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from cmt_training.card import CARD_FILE, model_card
from cmt_training.compare.figure import figure_of
from cmt_training.compare.results import Ladder, Results, cells_of
from cmt_training.data.pairing import NAME as PAIRED
from cmt_training.evaluation import Evaluation
from cmt_training.figures import figures_of
from cmt_training.html_page import Part, heading, images, page, paragraph, preformatted, table
from cmt_training.metrics import METRICS, Metrics

REPORT_FILE = "report.html"


def write_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """evaluation.json, a model card, a PNG for each figure, and report.html, which holds them all."""
    figures = figures_of(evaluation)
    rows = {f"{when} calibration": found for when, found in evaluation.stages.items()}
    body = [
        heading(f"{evaluation.model} on {evaluation.data}, {evaluation.split} split", 1),
        paragraph(
            f"Preset {evaluation.preset}, label set {evaluation.label_set}, "
            f"{evaluation.calibrated['count']} items, calibrated: {evaluation.calibrated_by}."
            f"{_warning(evaluation.data)}"
        ),
        *map(paragraph, evaluation.notes),
        _metrics_table(rows),
        heading("Per label"),
        table(("label", "F1", "items"), _per_label(evaluation)),
        heading("Subsets of modalities"),
        _metrics_table(evaluation.subsets),
        heading("Figures"),
        *images(figures),
        heading("Skipped"),
        table(("reason", "count"), [(reason, str(count)) for reason, count in evaluation.skipped.items()]),
        heading("Conditions"),
        preformatted(evaluation.conditions),
    ]
    _write(folder, f"{evaluation.model} on {evaluation.data}", body, figures)
    (folder / "evaluation.json").write_text(evaluation.to_json())
    (folder / CARD_FILE).write_text(model_card(evaluation))


def write_comparison(results: Results, folder: Path) -> None:
    """report.html, and its figure as PNG."""
    figures = {"fusions": figure_of(results)}
    names = ", ".join(results.corpora)
    body = [
        heading(f"A ladder of fusions on {names}", 1),
        paragraph(results.method),
        *(part for name, ladder in results.corpora.items() for part in _ladder(name, ladder)),
        heading("Figures"),
        *images(figures),
        heading("Conditions"),
        preformatted(results.conditions),
    ]
    _write(folder, f"Fusions compared on {names}", body, figures)


def _ladder(name: str, ladder: Ladder) -> list[Part]:
    rows = [
        (rung, *cells_of(found), f"{found.parameters:,}", *(f"{found.kinds[kind]:.2f}" for kind in ladder.kinds))
        for rung, found in ladder.rungs.items()
    ]
    kinds = [f"accuracy, {kind}" for kind in ladder.kinds]
    return [
        heading(f"{name}: {ladder.items['test']} test items"),
        *(paragraph(warning) for warning in [_warning(name)] if warning),
        table(("rung", "weighted F1", "cross-entropy", "ECE", "parameters", *kinds), rows),
        *map(paragraph, verdict_of(ladder)),
    ]


def verdict_of(ladder: Ladder) -> list[str]:
    """How far cross-attention is from the best other rung, and what of the best is interaction: a sentence each."""
    said = [
        f"Cross-attention over the best other rung, {METRICS[margin.measure].title}: {margin.told()}; "
        f"the paper's {margin.claimed_percent:+.1f} %: {'met' if margin.met else 'not met'}."
        for margin in ladder.margins
    ]
    best = (
        f"{ladder.best} has weighted F1 {ladder.own.mean:.3f}, and {ladder.emap.mean:.3f} without interactions (EMAP)"
    )
    return [*said, f"On some of the test items {best}."]


def _metrics_table(rows: Mapping[str, Metrics]) -> Part:
    head = ("", *(metric.title for metric in METRICS.values()), "items")
    return table(head, [(name, *metric_cells(found)) for name, found in rows.items()])


def metric_cells(found: Metrics) -> list[str]:
    """A figure a metric, and the count of items."""
    return [*(f"{found[name]:.4f}" for name in METRICS), str(found["count"])]


def _per_label(evaluation: Evaluation) -> list[tuple[str, str, str]]:
    found = zip(evaluation.labels, evaluation.f1, evaluation.support, strict=True)
    return [(label, f"{f1:.3f}", str(support)) for label, f1, support in found]


def _warning(data: str) -> str:
    if data.startswith(f"{PAIRED}-"):
        return " Paired data: nobody was recorded in all modalities."
    return " Generated data: these figures say nothing about people." if data == "generated" else ""


def _write(folder: Path, title: str, body: Sequence[Part], figures: Mapping[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, png in figures.items():
        (folder / f"{name}.png").write_bytes(png)
    (folder / REPORT_FILE).write_text(page(title, body))
