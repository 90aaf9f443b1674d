"""Ladders on one or several data sets: every rung trained for every seed, and what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import as_completed

from cmt_pipeline.modality import MODALITIES
from cmt_pipeline.progress import Progress
from cmt_training.binding.ladder import MODELS
from cmt_training.compare.results import Ladder, ladder_of
from cmt_training.compare.run import Place, trained
from cmt_training.compare.tokens import Tokens
from cmt_training.examples import DataError
from cmt_training.processes import processes


def models_for(tokens: Tokens) -> tuple[str, ...]:
    """Those of the ladder that these items have modalities for. Raises DataError where there is nothing to fuse."""
    found = tokens.modalities
    if len(found) < 2:
        raise DataError(f"got items with {', '.join(found)} alone; expected two modalities or more: pair sets (--pair)")
    return tuple(model for model in MODELS if model not in MODALITIES or model in found)


def measured(
    places: Mapping[str, Place],
    models: Mapping[str, Sequence[str]],
    seeds: Sequence[int],
    workers: int,
    progress: Progress,
) -> dict[str, Ladder]:
    """A ladder for each name. models: that are trained there, late fusion and cross-attention among them; what is
    trained already isn't done again. workers: processes, each on one core. ValueError for fewer than two seeds."""
    if len(set(seeds)) < 2:
        raise ValueError(f"seeds: got {list(seeds)}; expected two or more different ones")
    jobs = [(name, model) for name in places for model in models[name]]
    with processes(workers) as pool:
        for count in range(1, len(seeds) + 1):  # one seed of everything after another
            done = [pool.submit(_train, name, places[name], model, seeds[:count]) for name, model in jobs]
            for number, each in enumerate(as_completed(done), (count - 1) * len(jobs)):
                progress(each.result(), number / (len(jobs) * len(seeds)))
    found = {}
    for name, place in places.items():
        tokens = place.tokens()
        found[name] = ladder_of(tokens, {m: trained(m, tokens, place, seeds) for m in models[name]}, place)
    return found


def _train(name: str, place: Place, model: str, seeds: Sequence[int]) -> str:
    """What is new of it, in words."""
    *_, last = trained(model, place.tokens(), place, seeds)
    return (
        f"{name}, {model}, seed {last.seed}: loss {last.validation_loss:.3f} at {last.learning_rate:g} "
        f"after {last.best_step} steps, {last.seconds:.0f} s"
    )
