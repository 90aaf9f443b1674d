"""What each trick of training is worth, left out in turn.

    python -m cmt_training.ablation WORK [--tuned MELD] [--seeds N] [--tricks NAME,NAME] [--workers N]

Of encoders from nothing: `mini` on one generated corpus. With --tuned, of a published encoder that is tuned: MiniLM on
MELD's sentences, which lie in MELD. Same data, order, seeds and number of epochs for all; figures are of the test
split, of each model's best epoch; differences are paired by seed. A result is written after each training, and what it
holds isn't done again; a training that was ended goes on from its last epoch in WORK.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from cmt_export.checkpoint import checkpoint_from_preset, load_checkpoint
from cmt_pipeline.modality import MODALITIES
from cmt_pipeline.progress import no_progress
from cmt_release.durable import replace_file
from cmt_training.conditions import conditions
from cmt_training.data import open_data_set
from cmt_training.data.generated import load_generated
from cmt_training.evaluate import evaluate
from cmt_training.examples import DataSet
from cmt_training.generate.corpus import generate_corpus
from cmt_training.generate.options import CorpusOptions
from cmt_training.markdown import markdown_table
from cmt_training.options import TrainOptions
from cmt_training.prepare import Prepared, prepare
from cmt_training.processes import processes
from cmt_training.statistics import interval_of, paired
from cmt_training.train import train

COMMAND = "python -m cmt_training.ablation WORK"
EVERYTHING = "with all of them"
ITEMS = 2000  # generated ones
MEASURES = ("weighted_f1", "cross_entropy")
Job = tuple[str, int]  # a trick that is left out, and a seed
Row = dict[str, Any]  # "without", "seed", and figures


@dataclass(frozen=True)
class Study:
    """Trainings that differ in one trick. tricks: each -> the options that leave it out."""

    result: Path
    options: TrainOptions
    tricks: Mapping[str, Mapping[str, Any]]


FROM_NOTHING = Study(
    Path("training/results/ablation.json"),
    TrainOptions(epochs=8, encoder_epochs=8),
    {
        EVERYTHING: {},
        "Gabor filters and small branches at first": {"first_weights": False},
        "wavelets and hearing before": {"audio_pretraining_steps": 0},
        "cue heads": {"cues": 0.0},
        "encoders before the fusion": {"encoder_epochs": 0},
        "a head on each modality": {"auxiliary": 0.0},
        "dropped patches and stretches of sound": {"token_dropout": 0.0},
        "lost modalities": {"modality_dropout": 0.0},
        "changed media": {"augment": False},
        "weights of rare labels": {"class_weighting": 0.0},
    },
)
TUNED = Study(
    Path("training/results/ablation_tuned.json"),
    TrainOptions(model="text", tune="last-4", epochs=3),
    {
        EVERYTHING: {},
        "average of the weights": {"ema": 0.0},
        "lower layers slower": {"layer_decay": 1.0},
        "warm-up": {"warm_up": 0.0},
        "weights of rare labels": {"class_weighting": 0.0},
    },
)


def ablation(
    data: Prepared, study: Study, work: Path, jobs: Sequence[Job], workers: int, keep: Callable[[Row], None]
) -> None:
    """Trains and measures each job, and keeps its row; several workers are processes on one core each."""
    if workers == 1:
        for job in jobs:
            keep(_run(data, study, work, job))
        return
    with processes(workers) as pool:
        for future in as_completed([pool.submit(_run, data, study, work, job) for job in jobs]):
            keep(future.result())


def _run(data: Prepared, study: Study, work: Path, job: Job) -> Row:
    """Figures of one training: those of all modalities, and, where they are several, the F1 of each alone."""
    (trick, seed), options = job, study.options
    changes, out = study.tricks[trick], work / f"{trick.replace(' ', '-')}-{seed}"
    if changes.get("encoder_epochs") == 0:  # as many epochs in all
        options = replace(options, epochs=options.epochs + options.encoder_epochs)
    state = train(data, replace(options, seed=seed, patience=options.epochs, **changes), out, no_progress, resume=True)
    found = evaluate(load_checkpoint(out), data, no_progress)
    for folder in (out, out.with_name(f"{out.name}.run")):
        shutil.rmtree(folder)
    figures = {measure: found.calibrated[measure] for measure in MEASURES}
    if options.model == "cmt":
        figures |= {f"{m}_weighted_f1": found.subsets[m]["weighted_f1"] for m in MODALITIES}
    figures |= {"seconds": sum(epoch["seconds"] for epoch in state.history)}
    return {"without": trick, "seed": seed} | {name: round(value, 4) for name, value in figures.items()}


def table(study: Study, rows: Sequence[Row]) -> str:
    """Markdown: means over the seeds of each trick's absence, and differences from everything with 95 % intervals."""
    runs = {(row["without"], row["seed"]): row for row in rows}
    alone = [m for m in MODALITIES if f"{m}_weighted_f1" in rows[0]]
    lines = []
    for trick in study.tricks:
        seeds = sorted({seed for name, seed in runs if name == trick} & {s for name, s in runs if name == EVERYTHING})
        if not seeds:
            continue
        cells = [trick if trick != EVERYTHING else "nothing", str(len(seeds))]
        for measure in MEASURES:
            values, whole = ([runs[name, seed][measure] for seed in seeds] for name in (trick, EVERYTHING))
            told = trick != EVERYTHING and len(seeds) > 1
            cells += [f"{fmean(values):.3f}", paired(interval_of(values), interval_of(whole)).short() if told else ""]
        lines.append(cells + [f"{fmean(runs[trick, seed][f'{m}_weighted_f1'] for seed in seeds):.3f}" for m in alone])
    head = ["left out", "seeds", "weighted F1", "difference", "cross-entropy", "difference", *alone]
    return markdown_table(head, lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("--tuned", type=Path, metavar="MELD", help="a folder of MELD's annotations")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tricks", help="some of them; all by default")
    parser.add_argument("--workers", type=int, default=2, help="trainings at a time, each on one core")
    parser.add_argument("--result", type=Path)
    given = parser.parse_args()
    study = TUNED if given.tuned else FROM_NOTHING
    result, tricks = given.result or study.result, given.tricks.split(",") if given.tricks else study.tricks
    made = open_data_set(given.tuned) if given.tuned else _corpus(given.work / f"corpus-{ITEMS}")
    checkpoint = checkpoint_from_preset(study.options.preset, made.label_set, model=study.options.model)
    data = prepare(made, checkpoint.config.preprocess, checkpoint.tokenizer, given.work / "prepared", no_progress)
    told = conditions(
        command=COMMAND + (" --tuned MELD" if given.tuned else ""),
        data=made.name,
        items={split: len(data.of(split)) for split in ("train", "validation", "test")},
        options=asdict(study.options),
    )
    rows = kept(result, told)
    jobs = [(trick, seed) for seed in range(given.seeds) for trick in tricks]
    done = {(row["without"], row["seed"]) for row in rows}

    def keep(row: Row) -> None:
        rows.append(row)
        print(f"{len(rows)} of {len(done | set(jobs))}: {row}", flush=True)
        text = json.dumps({"rows": rows, "conditions": told}, indent=1) + "\n"
        replace_file(result, text.encode(), result.parent)

    ablation(data, study, given.work, [job for job in jobs if job not in done], given.workers, keep)
    print(table(study, rows))


def _corpus(folder: Path) -> DataSet:
    return load_generated(folder) if folder.is_dir() else generate_corpus(folder, CorpusOptions(items=ITEMS))


def kept(result: Path, told: Mapping[str, Any]) -> list[Row]:
    """Rows of an earlier run of the same data and options; one that came since is at its default. ValueError where it
    was of others."""
    if not result.is_file():
        return []
    earlier = json.loads(result.read_text())
    now = json.loads(json.dumps(told))
    now["options"] = {name: now["options"].get(name) for name in earlier["conditions"]["options"]}
    for what in ("data", "items", "options"):
        if (was := earlier["conditions"][what]) != now[what]:
            raise ValueError(
                f"{result} has rows of {what} {was}; expected {now[what]}: move the file away to begin anew"
            )
    rows: list[Row] = earlier["rows"]
    return rows


if __name__ == "__main__":
    main()
