"""The tables of docs/training.md that real.json's figures make. `python -m cmt_perf.real.page` prints them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmt_training.compare.results import Results
from cmt_training.markdown import markdown_table

RESULT = Path("training/results/real.json")
DATA = {"emodb": "EmoDB", "meld": "MELD", "fer2013": "FER2013"}


def alone(results: Mapping[str, Any]) -> str:
    """Each encoder on its own data."""
    rows = []
    for part, name in DATA.items():
        found, served = results[part], results[part]["served"]
        low, high = found["weighted_f1_interval"]
        cells = [name, found["encoder"], str(found["items"]), f"{found['weighted_f1']:.3f} [{low:.3f}, {high:.3f}]"]
        cells += [f"{found[key]:.3f}" for key in ("unweighted_recall", "commonest_label")]
        rows.append(
            [
                *cells,
                f"{served['weighted_f1']:.3f} of {served['items']}, {served['precision']}",
                f"{served['same_label_as_pytorch']:.1%}",
            ]
        )
    head = [
        "data",
        "encoder",
        "items",
        "weighted F1",
        "unweighted recall",
        "commonest label",
        "served",
        "as PyTorch",
    ]
    return markdown_table(head, rows)


def ladder_on_paired(results: Mapping[str, Any]) -> str:
    """The ladder on the paired data."""
    (ladder,) = Results.from_json(json.dumps(results["paired"]["ladder"])).corpora.values()
    return Results({"paired": ladder}, {}).markdown()


def subsets(results: Mapping[str, Any]) -> str:
    """What `cmt train` makes of the paired data, by the modalities that are there."""
    found: Mapping[str, float] = results["paired"]["subsets"]
    rows = [[subset.replace("+", ", "), f"{f1:.3f}"] for subset, f1 in found.items()]
    return markdown_table(["modalities", "weighted F1"], rows)


if __name__ == "__main__":
    made = json.loads(RESULT.read_text())
    print(alone(made), ladder_on_paired(made), subsets(made), sep="\n\n")
