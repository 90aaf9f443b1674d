"""`python -m cmt_training.interplay`: the ladder on the generated corpus, with interplay and without.

Writes generated.json and the pictures of docs/training.md. What lies in --work isn't made or trained again.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from cmt_export.checkpoint import load_checkpoint
from cmt_pipeline.progress import Progress
from cmt_training.compare.figure import figure_of
from cmt_training.compare.learn import Budget
from cmt_training.interplay.bench import WITH, Bench, results_of
from cmt_training.interplay.looks import looks_of, picture_of

ROOT = Path(__file__).parents[3]
CHECKPOINT = ROOT / "cmt" / "cmt_cli" / "weights" / "mini-meld"  # its encoders learnt from another corpus, of seed 0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m cmt_training.interplay", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "training" / "results" / "generated.json")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "images" / "interplay.png")
    parser.add_argument("--looks", type=Path, default=ROOT / "docs" / "images" / "looks.png", help="what it looks at")
    parser.add_argument("--work", type=Path, default=Path(".cmt/interplay"))
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="whose encoders are read, frozen")
    parser.add_argument("--items", type=int, default=20_000, help="of each corpus")
    parser.add_argument("--seeds", type=int, default=5, help="how many, two or more")
    parser.add_argument("--steps", type=int, default=Budget.steps)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes, each on one core")
    given = parser.parse_args()
    seeds, budget = tuple(range(given.seeds)), Budget(steps=given.steps)
    bench = Bench(given.work, given.checkpoint, given.items, seeds, budget)
    results = results_of(bench, given.workers, _told())
    given.out.write_text(results.to_json())
    given.picture.write_bytes(figure_of(results))
    tokenizer = load_checkpoint(given.checkpoint).tokenizer
    given.looks.write_bytes(picture_of(looks_of(bench.place(WITH), bench.corpus(WITH), tokenizer, seeds[0])))
    print(results.markdown(), *map(results.kinds_markdown, results.corpora), sep="\n\n")


def _told() -> Progress:
    last = [""]

    def tell(what: str, done: float) -> None:
        if (line := f"{5 * int(20 * done):3d} %  {what}") != last[0]:
            last[0] = line
            print(line, flush=True)

    return tell


if __name__ == "__main__":
    main()
