"""What each trick of training encoders from nothing is worth: `mini` on one generated corpus, each left out in turn.

    python -m cmt_training.ablation WORK [--items N] [--seeds N] [--epochs N] [--tricks NAME,NAME] [--workers N]

Same corpus, items, order, seeds and number of epochs for all; figures are of the test split, of each model's best
epoch; differences are paired by seed. WORK/TRICK-SEED.json holds a run's figures, and what has one isn't done again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cmt_export.checkpoint import checkpoint_from_preset, load_checkpoint
from cmt_pipeline.progress import no_progress
from cmt_training.binding.run import on_one_thread
from cmt_training.conditions import conditions
from cmt_training.data.generated import load_generated
from cmt_training.evaluate import evaluate
from cmt_training.generate.corpus import generate_corpus
from cmt_training.generate.options import CorpusOptions
from cmt_training.options import TrainOptions
from cmt_training.prepare import Prepared, prepare
from cmt_training.statistics import interval_of, paired
from cmt_training.train import train

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


def ablation(
    data: Prepared, options: TrainOptions, work: Path, seeds: Sequence[int], tricks: Sequence[str], workers: int
) -> dict[str, Any]:
    """Trains and measures every trick's absence for every seed; several workers are processes on one core each."""
    jobs = [(trick, seed) for seed in seeds for trick in tricks]
    found = {}
    for count, (job, row) in enumerate(_rows(jobs, data, options, work, workers), 1):
        found[job] = row
        print(f"{count} of {len(jobs)}: {job}, {row}", flush=True)
    runs = {trick: [found[trick, seed] for seed in seeds] for trick in tricks}
    return {
        "without": {trick: _summary(rows, runs[EVERYTHING]) for trick, rows in runs.items()},
        "conditions": conditions(
            data=data.folder.name,
            items={split: len(data.of(split)) for split in ("train", "validation", "test")},
            seeds=list(seeds),
            options=asdict(options),
        ),
    }


def _rows(
    jobs: Sequence[Job], data: Prepared, options: TrainOptions, work: Path, workers: int
) -> Iterator[tuple[Job, dict[str, float]]]:
    """As they are done."""
    if workers == 1:
        yield from ((job, _run(data, replace(options, seed=job[1]), work, job[0])) for job in jobs)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), on_one_thread) as pool:
        futures = {pool.submit(_run, data, replace(options, seed=job[1]), work, job[0]): job for job in jobs}
        yield from ((futures[future], future.result()) for future in as_completed(futures))


def _run(data: Prepared, options: TrainOptions, work: Path, trick: str) -> dict[str, float]:
    """Figures of one training: those of all modalities, and the F1 of each alone."""
    changes, name = TRICKS[trick], f"{trick.replace(' ', '-')}-{options.seed}"
    done, out = work / f"{name}.json", work / name
    if not done.is_file():
        if changes.get("encoder_epochs") == 0:  # as many epochs in all
            options = replace(options, epochs=options.epochs + options.encoder_epochs)
        changed = replace(options, patience=options.epochs, **changes)
        state = train(data, changed, out, no_progress, resume=True)
        found = evaluate(load_checkpoint(out), data, no_progress)
        row = {measure: found.calibrated[measure] for measure in MEASURES}
        row |= {f"{m}_weighted_f1": found.subsets[m]["weighted_f1"] for m in SUBSETS}
        row |= {"seconds": sum(row["seconds"] for row in state.history)}
        done.write_text(json.dumps(row))
        for folder in (out, out.with_name(f"{name}.run")):
            shutil.rmtree(folder)
    values: dict[str, float] = json.loads(done.read_text())
    return values


def _summary(found: Sequence[Mapping[str, float]], whole: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Means, and differences from everything with 95 % intervals; one seed has none."""
    summary: dict[str, Any] = {}
    for measure in found[0]:
        values, reference = ([run[measure] for run in runs] for runs in (found, whole))
        summary[measure] = {"mean": sum(values) / len(values), "values": values}
        if len(values) > 1 and found is not whole:
            summary[measure]["difference"] = str(paired(interval_of(values), interval_of(reference)))
    return summary


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("--items", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--tricks", default=",".join(TRICKS))
    parser.add_argument("--workers", type=int, default=2, help="trainings at a time, each on one core")
    given = parser.parse_args()
    corpus = given.work / f"corpus-{given.items}"
    made = load_generated(corpus) if corpus.is_dir() else generate_corpus(corpus, CorpusOptions(items=given.items))
    options = TrainOptions(epochs=given.epochs, encoder_epochs=given.epochs)
    checkpoint = checkpoint_from_preset(options.preset, made.label_set)
    data = prepare(made, checkpoint.config.preprocess, checkpoint.tokenizer, given.work / "prepared", no_progress)
    found = ablation(data, options, given.work, range(given.seeds), given.tricks.split(","), given.workers)
    RESULT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
