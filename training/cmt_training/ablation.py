"""What each trick of training encoders from nothing is worth: `mini` on one generated corpus, each left out in turn.

    python -m cmt_training.ablation WORK [--items N] [--seeds N] [--epochs N] [--tricks NAME,NAME] [--workers N]

Same corpus, items, order, seeds and number of epochs for all; figures are of the test split, of each model's best
epoch; differences are paired by seed. RESULT is written after each training, and what it holds isn't done again; a
training that was ended goes on from its last epoch in WORK.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from cmt_export.checkpoint import checkpoint_from_preset, load_checkpoint
from cmt_pipeline.progress import no_progress
from cmt_release.durable import replace_file
from cmt_training.conditions import conditions
from cmt_training.data.generated import load_generated
from cmt_training.evaluate import evaluate
from cmt_training.generate.corpus import generate_corpus
from cmt_training.generate.options import CorpusOptions
from cmt_training.options import TrainOptions
from cmt_training.prepare import Prepared, prepare
from cmt_training.processes import processes
from cmt_training.statistics import interval_of, paired
from cmt_training.train import train

COMMAND = "python -m cmt_training.ablation WORK"
RESULT = Path("training/results/ablation.json")
EVERYTHING = "with all of them"
#: A trick -> the options that leave it out.
TRICKS: dict[str, dict[str, Any]] = {
    EVERYTHING: {},
    "Gabor filters and small branches at first": {"first_weights": False},
    "wavelets and hearing before": {"audio_pretraining_steps": 0},
    "cue heads": {"cues": 0.0},
    "encoders before the fusion": {"encoder_epochs": 0},
    "a head on each modality": {"auxiliary": 0.0},
    "dropped patches and stretches of sound": {"token_dropout": 0.0},
}
MEASURES = ("weighted_f1", "cross_entropy")
SUBSETS = ("image", "audio", "text")
Job = tuple[str, int]  # a trick that is left out, and a seed
Row = dict[str, Any]  # "without", "seed", and figures


def ablation(
    data: Prepared,
    options: TrainOptions,
    work: Path,
    jobs: Sequence[Job],
    workers: int,
    keep: Callable[[Row], None],
) -> None:
    """Trains and measures each job, and keeps its row; several workers are processes on one core each."""
    if workers == 1:
        for job in jobs:
            keep(_run(data, options, work, job))
        return
    with processes(workers) as pool:
        for future in as_completed([pool.submit(_run, data, options, work, job) for job in jobs]):
            keep(future.result())


def _run(data: Prepared, options: TrainOptions, work: Path, job: Job) -> Row:
    """Figures of one training: those of all modalities, and the F1 of each alone."""
    trick, seed = job
    changes, out = TRICKS[trick], work / f"{trick.replace(' ', '-')}-{seed}"
    if changes.get("encoder_epochs") == 0:  # as many epochs in all
        options = replace(options, epochs=options.epochs + options.encoder_epochs)
    state = train(data, replace(options, seed=seed, patience=options.epochs, **changes), out, no_progress, resume=True)
    found = evaluate(load_checkpoint(out), data, no_progress)
    for folder in (out, out.with_name(f"{out.name}.run")):
        shutil.rmtree(folder)
    figures = {measure: found.calibrated[measure] for measure in MEASURES}
    figures |= {f"{m}_weighted_f1": found.subsets[m]["weighted_f1"] for m in SUBSETS}
    figures |= {"seconds": sum(epoch["seconds"] for epoch in state.history)}
    return {"without": trick, "seed": seed} | {name: round(value, 4) for name, value in figures.items()}


def table(rows: Sequence[Row]) -> str:
    """Markdown: means over the seeds of each trick's absence, and differences from everything with 95 % intervals."""
    runs = {(row["without"], row["seed"]): row for row in rows}
    lines = [
        "| left out | seeds | weighted F1 | difference | cross-entropy | difference | image | audio | text |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for trick in TRICKS:
        seeds = sorted({seed for name, seed in runs if name == trick} & {s for name, s in runs if name == EVERYTHING})
        if not seeds:
            continue
        cells = [trick if trick != EVERYTHING else "nothing", str(len(seeds))]
        for measure in MEASURES:
            values, whole = ([runs[name, seed][measure] for seed in seeds] for name in (trick, EVERYTHING))
            told = trick != EVERYTHING and len(seeds) > 1
            cells += [f"{fmean(values):.3f}", paired(interval_of(values), interval_of(whole)).short() if told else ""]
        cells += [f"{fmean(runs[trick, seed][f'{m}_weighted_f1'] for seed in seeds):.3f}" for m in SUBSETS]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("--items", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--tricks", default=",".join(TRICKS))
    parser.add_argument("--workers", type=int, default=2, help="trainings at a time, each on one core")
    parser.add_argument("--result", type=Path, default=RESULT)
    given = parser.parse_args()
    corpus = given.work / f"corpus-{given.items}"
    made = load_generated(corpus) if corpus.is_dir() else generate_corpus(corpus, CorpusOptions(items=given.items))
    options = TrainOptions(epochs=given.epochs, encoder_epochs=given.epochs)
    checkpoint = checkpoint_from_preset(options.preset, made.label_set)
    data = prepare(made, checkpoint.config.preprocess, checkpoint.tokenizer, given.work / "prepared", no_progress)
    told = conditions(
        command=COMMAND,
        data=data.folder.name,
        items={split: len(data.of(split)) for split in ("train", "validation", "test")},
        options=asdict(options),
    )
    rows = kept(given.result, told)
    jobs = [(trick, seed) for seed in range(given.seeds) for trick in given.tricks.split(",")]
    done = {(row["without"], row["seed"]) for row in rows}

    def keep(row: Row) -> None:
        rows.append(row)
        print(f"{len(rows)} of {len(done | set(jobs))}: {row}", flush=True)
        text = json.dumps({"rows": rows, "conditions": told}, indent=1) + "\n"
        replace_file(given.result, text.encode(), given.result.parent)

    ablation(data, options, given.work, [job for job in jobs if job not in done], given.workers, keep)
    print(table(rows), end="")


def kept(result: Path, told: Mapping[str, Any]) -> list[Row]:
    """Rows of an earlier run of the same data and options. ValueError where it was of others."""
    if not result.is_file():
        return []
    earlier = json.loads(result.read_text())
    for what in ("data", "items", "options"):
        now = json.loads(json.dumps(told[what]))
        if earlier["conditions"][what] != now:
            was = earlier["conditions"][what]
            raise ValueError(f"{result} has rows of {what} {was}; expected {now}: move the file away to begin anew")
    rows: list[Row] = earlier["rows"]
    return rows


if __name__ == "__main__":
    main()
