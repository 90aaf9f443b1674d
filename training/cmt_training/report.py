"""Reports: figures as PNG and one HTML page that holds everything, made of what the JSON says and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from cmt_training.card import CARD_FILE, model_card
from cmt_training.comparison import Comparison
from cmt_training.data.pairing import NAME as PAIRED
from cmt_training.evaluation import Evaluation
from cmt_training.figures import comparison_figures, figures_of
from cmt_training.html_page import Part, heading, images, page, paragraph, preformatted, table
from cmt_training.markdown import markdown_table
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


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """report.html and a PNG for each figure."""
    figures = comparison_figures(comparison)
    body = [
        heading(f"{len(comparison.models)} models, {len(comparison.seeds)} seeds, {comparison.data}", 1),
        paragraph(comparison.method + _warning(comparison.data)),
        table(("model", *(metric.title for metric in METRICS.values()), "parameters"), model_rows(comparison)),
        heading("CMT minus each baseline"),
        table(("baseline", "weighted F1", "cross-entropy", "cross-entropy, %"), difference_rows(comparison)),
        heading("Verdict"),
        paragraph(verdict_of(comparison)),
        heading("Figures"),
        *images(figures),
        heading("Conditions"),
        preformatted(comparison.conditions),
    ]
    _write(folder, f"{comparison.data}: models compared", body, figures)


def model_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """A row a model: every metric with its interval, parameters of the fusion."""
    return [
        (name, *(str(found.get(metric, "")) for metric in METRICS), f"{comparison.fusion_parameters[name]:,}")
        for name, found in comparison.models.items()
    ]


def difference_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """A row a baseline: how far CMT is from it."""
    return [
        (name, str(found.weighted_f1), str(found.cross_entropy), f"{found.cross_entropy_percent:+.1f}")
        for name, found in comparison.differences.items()
    ]


def comparison_markdown(comparison: Comparison) -> str:
    """The table of docs/training.md: models, and how far CMT is from each."""
    rows = []
    for name, found in comparison.models.items():
        cells = [found[metric].short() for metric in ("weighted_f1", "cross_entropy", "ece")]
        difference = comparison.differences.get(name)
        cells += [difference.weighted_f1.short(), difference.cross_entropy.short()] if difference else ["", ""]
        rows.append([name, *cells])
    head = ("model", "weighted F1", "cross-entropy", "ECE", "CMT minus it: F1", "cross-entropy")
    return markdown_table(head, rows) + "\n"


def verdict_of(comparison: Comparison) -> str:
    """Whether the paper's claims hold here, in a sentence for each."""
    sentences = []
    for claim in comparison.verdict.values():
        met = "met" if claim.met else "not met"
        sentences.append(
            f"{claim.measure} {claim.claimed_percent:+.1f} %: {met}; {claim.found_percent:+.1f} % "
            f"against {claim.baseline}, the difference {claim.difference} "
            f"{'excludes' if claim.significant else 'includes'} 0."
        )
    return " ".join(sentences)


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
