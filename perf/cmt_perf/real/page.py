"""The tables of docs/training.md that real.json's figures make. `python -m cmt_perf.real.page` prints them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmt_training.compare.results import Results

RESULT = Path("training/results/real.json")
DATA = {"emodb": "EmoDB", "meld": "MELD", "fer2013": "FER2013"}


def alone(results: Mapping[str, Any]) -> str:
    """Each encoder on its own data."""
    lines = [
        "| data | encoder | items | weighted F1 | unweighted recall | commonest label | served, bf16 | as PyTorch |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for part, name in DATA.items():
        if part in results:
            found, served = results[part], results[part]["served"]
            interval = [f"{end:.3f}" for end in found.get("weighted_f1_interval", ())]  # none of a single seed
            cells = [f"{found['weighted_f1']:.3f}" + (f" [{', '.join(interval)}]" if interval else "")]
            cells += [f"{found[key]:.3f}" for key in ("unweighted_recall", "commonest_label")]
            cells.append(f"{served['weighted_f1']:.3f} of {served['items']}")
            cells.append(f"{served['same_label_as_pytorch']:.1%}")
            lines.append(f"| {name} | {found['encoder']} | {found['items']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def paired(results: Mapping[str, Any]) -> str:
    """The ladder on the paired data; of a single seed, every subset: CMT beside late fusion."""
    if "ladder" not in results["paired"]:
        lines = ["| modalities | CMT | late fusion |", "| --- | ---: | ---: |"]
        for subset, found in results["paired"]["weighted_f1"].items():
            lines.append(f"| {subset.replace('+', ', ')} | {found['cmt']:.3f} | {found['late']:.3f} |")
        return "\n".join(lines) + "\n"
    ladders = Results.from_json(json.dumps(results["paired"]["ladder"]))
    ladder = next(iter(ladders.corpora.values()))
    return Results({"paired": ladder}, {}).markdown()


if __name__ == "__main__":
    made = json.loads(RESULT.read_text())
    print(alone(made), paired(made), sep="\n")
