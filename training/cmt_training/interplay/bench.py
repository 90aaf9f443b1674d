"""The whole bench: corpora, tokens, trainings and what was found."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cmt_pipeline.progress import Progress, no_progress
from cmt_training.binding.run import on_one_thread
from cmt_training.conditions import conditions
from cmt_training.generate.options import CorpusOptions
from cmt_training.interplay.learn import Budget
from cmt_training.interplay.results import METHOD, Ladder, Results, ladder_of
from cmt_training.interplay.run import MODELS, Place, trained
from cmt_training.interplay.tokens import Tokens, tokens_of

SEED = 1  # of the corpora: other people than those that the encoders learnt from
SIDE_PX = 112
RATE = 0.5
#: Of each corpus; the control asks whether what interplay needs costs anything where sums of evidence do.
LADDERS: dict[str, tuple[str, ...]] = {"interplay": MODELS, "control": ("late", "concat", "cross-attention")}


@dataclass(frozen=True)
class Bench:
    """items: of the corpus with interplay; control: of that without."""

    work: Path
    checkpoint: Path
    items: int
    control: int
    seeds: tuple[int, ...]
    budget: Budget

    def corpora(self) -> dict[str, CorpusOptions]:
        return {
            "interplay": CorpusOptions(items=self.items, seed=SEED, image_side_px=SIDE_PX, interplay_rate=RATE),
            "control": CorpusOptions(items=self.control, seed=SEED, image_side_px=SIDE_PX),
        }

    def tokens(self, name: str, workers: int, progress: Progress) -> Tokens:
        return tokens_of(self.work / name, self.corpora()[name], self.checkpoint, workers, progress)

    def place(self, name: str) -> Place:
        return Place(self.work / name, self.budget)

    def ladder(self, name: str, tokens: Tokens) -> Ladder:
        place = self.place(name)
        return ladder_of(tokens, {model: trained(model, tokens, place, self.seeds) for model in LADDERS[name]}, place)


def measured(bench: Bench, workers: int) -> Results:
    """Makes the corpora and their tokens, trains the ladder on each, and says what it found."""
    tokens = {name: bench.tokens(name, workers, _told(name)) for name in bench.corpora()}
    jobs = [(name, model) for name in tokens for model in LADDERS[name]]
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), on_one_thread) as pool:
        for count in range(1, len(bench.seeds) + 1):  # one seed of everything after another
            done = [pool.submit(_train, replace(bench, seeds=bench.seeds[:count]), *job) for job in jobs]
            for each in as_completed(done):
                print(each.result(), flush=True)
    found = {name: bench.ladder(name, each) for name, each in tokens.items()}
    made_of = {name: asdict(options) for name, options in bench.corpora().items()}
    return Results(METHOD, found, conditions(seeds=list(bench.seeds), budget=asdict(bench.budget), corpora=made_of))


def _train(bench: Bench, name: str, model: str) -> str:
    """What is new of it, in words."""
    *_, last = trained(model, bench.tokens(name, 1, no_progress), bench.place(name), bench.seeds)
    return (
        f"{name}, {model}, seed {last.seed}: loss {last.validation_loss:.3f} at {last.learning_rate:g} "
        f"after {last.best_step} steps, {last.seconds:.0f} s"
    )


def _told(name: str) -> Progress:
    last = [-1]

    def tell(what: str, done: float) -> None:
        if (now := int(20 * done)) != last[0]:
            last[0] = now
            print(f"{name}: {what}, {5 * now} %", flush=True)

    return tell
