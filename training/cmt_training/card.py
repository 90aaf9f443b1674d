"""A model card (Mitchell et al. 2019, arXiv 1810.03993) out of an evaluation: data, figures, limits."""

from __future__ import annotations

import json
from collections.abc import Mapping

from cmt_training.data.pairing import NAME
from cmt_training.evaluation import Evaluation
from cmt_training.markdown import markdown_table
from cmt_training.metrics import METRICS, Metrics

CARD_FILE = "MODEL_CARD.md"

#: data set -> what it is, and what follows from that for whoever uses the model.
DATA = {
    "generated": (
        "a generated corpus: drawn faces, synthesised speech, sentences of a grammar. No person was recorded",
        "What it knows of faces and voices is what drawings and a synthesiser show. On real people its answers mean "
        "nothing, and its figures stand beside no published score.",
    ),
    "meld": (
        "MELD (Poria et al. 2019): utterances of one television series, acted and in English",
        "Acted emotions of a few actors; other people, languages and situations are not covered.",
    ),
    "iemocap": (
        "IEMOCAP (Busso et al. 2008): dyadic sessions of ten actors, in English",
        "Acted emotions of ten actors; other people, languages and situations are not covered.",
    ),
    "affectnet": (
        "AffectNet (Mollahosseini et al. 2017): faces from the web, labelled by single raters",
        "Labels say what a rater saw in a face, not what a person felt; groups are represented unevenly.",
    ),
    "fer2013": (
        "FER2013 (Goodfellow et al. 2013): small grey faces from the web",
        "Labels say what a rater saw in a face, not what a person felt; people agree with them about two times in "
        "three.",
    ),
    "ravdess": (
        "RAVDESS (Livingstone & Russo 2018): two sentences, spoken by 24 actors, in English",
        "Acted emotions of a few actors; other people, languages and situations are not covered.",
    ),
    "cremad": (
        "CREMA-D (Cao et al. 2014): twelve sentences, spoken by 91 actors, in English",
        "Acted emotions of a few actors; other people, languages and situations are not covered.",
    ),
    "emodb": (
        "EmoDB (Burkhardt et al. 2005): ten sentences, spoken by ten actors, in German",
        "Acted emotions of ten actors; other people, languages and situations are not covered.",
    ),
}
PAIRED = (
    "paired: images, sounds and texts of different data sets that share a label. Nobody was recorded in all of them",
    "Its modalities always agree, as those of people don't, and each has the limits of the data set that it is from. "
    "Its figures stand beside no published score.",
)
UNKNOWN = ("data of its own", "Nothing is known here of whom the data represents.")


def model_card(evaluation: Evaluation) -> str:
    """Markdown."""
    paired = evaluation.data.startswith(f"{NAME}-")
    source, limit = PAIRED if paired else DATA.get(evaluation.data, UNKNOWN)
    notes = evaluation.notes
    before = evaluation.stages.get("before")
    metrics = {"all modalities, before calibration": before} if before else {}
    metrics |= {name.replace("+", ", "): found for name, found in evaluation.subsets.items()}
    parts = [
        f"# {evaluation.model} ({evaluation.preset}), trained on {evaluation.data}",
        f"Reads emotion ({', '.join(evaluation.labels)}; label set `{evaluation.label_set}`) from an image of a face, "
        "a speech clip and a text, or any of them.",
        f"**Data.** {source[0].upper()}{source[1:]}.{''.join(f' {note[0].upper()}{note[1:]}.' for note in notes)}",
        f"**Not for real decisions about people.** {limit}",
        f"**Figures** of the {evaluation.split} split, probabilities calibrated on the validation split "
        f"({evaluation.calibrated_by}):",
        markdown_table(("modalities", "items", *(metric.title for metric in METRICS.values())), _rows(metrics)),
        markdown_table(("label", "F1", "items"), _per_label(evaluation)),
        f"**Conditions.** `{json.dumps(dict(evaluation.conditions), sort_keys=True)}`",
    ]
    return "\n\n".join(parts) + "\n"


def _rows(metrics: Mapping[str, Metrics]) -> list[tuple[str, ...]]:
    return [
        (name, str(found["count"]), *(f"{found[metric]:.3f}" for metric in METRICS)) for name, found in metrics.items()
    ]


def _per_label(evaluation: Evaluation) -> list[tuple[str, ...]]:
    found = zip(evaluation.labels, evaluation.f1, evaluation.support, strict=True)
    return [(label, f"{f1:.3f}", str(support)) for label, f1, support in found]
