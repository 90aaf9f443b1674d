"""The corpora of the bench, their tokens, and the ladder on each."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from cmt_export.checkpoint import load_checkpoint
from cmt_pipeline.progress import Progress
from cmt_training.binding.ladder import MODELS
from cmt_training.compare.ladders import measured
from cmt_training.compare.learn import Budget
from cmt_training.compare.results import Results
from cmt_training.compare.run import Place
from cmt_training.compare.tokens import tokens_of
from cmt_training.conditions import conditions
from cmt_training.data.generated import load_generated
from cmt_training.generate.corpus import generate_corpus
from cmt_training.generate.options import CorpusOptions
from cmt_training.prepare import prepare

SEED = 1  # of the corpora: other people than those that the encoders learnt from
SIDE_PX = 112
RATE = 0.5
WITH, CONTROL = "interplay", "control"
#: Of each corpus; the control asks whether what interplay needs costs anything where sums of evidence do.
LADDERS: dict[str, tuple[str, ...]] = {WITH: tuple(MODELS), CONTROL: ("late", "concat", "cross-attention")}


@dataclass(frozen=True)
class Bench:
    """items: of each corpus."""

    work: Path
    checkpoint: Path
    items: int
    seeds: tuple[int, ...]
    budget: Budget

    def corpora(self) -> dict[str, CorpusOptions]:
        return {
            WITH: CorpusOptions(items=self.items, seed=SEED, image_side_px=SIDE_PX, interplay_rate=RATE),
            CONTROL: CorpusOptions(items=self.items, seed=SEED, image_side_px=SIDE_PX),
        }

    def corpus(self, name: str) -> Path:
        return self.work / name / "corpus"

    def place(self, name: str) -> Place:
        return Place(self.work / name, self.budget)

    def make_tokens(self, name: str, workers: int, progress: Progress) -> None:
        """Where they aren't there, and the corpus too."""
        if (place := self.place(name)).tokens_folder.is_dir():
            return
        corpus, opened = self.corpus(name), load_checkpoint(self.checkpoint)
        data = load_generated(corpus) if corpus.is_dir() else generate_corpus(corpus, self.corpora()[name], progress)
        ready = prepare(data, opened.config.preprocess, opened.tokenizer, self.work / name, progress, workers)
        tokens_of(place.tokens_folder, ready, opened.model, progress)


def results_of(bench: Bench, workers: int, progress: Progress) -> Results:
    """Makes the corpora and their tokens, trains the ladder on each, and says what it found."""
    for name in bench.corpora():
        bench.make_tokens(name, workers, progress)
    found = measured({name: bench.place(name) for name in LADDERS}, LADDERS, bench.seeds, workers, progress)
    made_of = {name: asdict(options) for name, options in bench.corpora().items()}
    return Results(
        found,
        conditions(
            seeds=list(bench.seeds), budget=asdict(bench.budget), corpora=made_of, encoders=bench.checkpoint.name
        ),
    )
