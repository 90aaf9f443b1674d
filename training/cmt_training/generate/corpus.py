"""CorpusOptions -> a folder: corpus.json, a table of every split, and the images and sounds. Whole, or not at all."""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import multiprocessing
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, astuple, fields
from pathlib import Path

from cmt_pipeline.progress import Progress, no_progress
from cmt_training.data.generated import CORPUS_FILE, FORMAT, NAME, load_generated, table_of
from cmt_training.examples import DataError, DataSet, Split
from cmt_training.generate import espeak
from cmt_training.generate.expressions import Actions, actions_of
from cmt_training.generate.options import LABEL_SET, CorpusOptions
from cmt_training.generate.people import person_of
from cmt_training.generate.plan import Plan, plan_of, tags_of
from cmt_training.generate.scenes import picture
from cmt_training.generate.seeds import rng_of
from cmt_training.generate.sentences import misheard, sentence
from cmt_training.generate.voices import Prosody, prosody_of, speech, stressed

LIBRARIES = ("numpy", "pillow", "scipy", "soundfile", "soxr")
CHUNK = 40  # examples that a process makes at a time
AHEAD = 2  # chunks waiting for each process


def generate_corpus(
    folder: Path, options: CorpusOptions, progress: Progress = no_progress, processes: int | None = None
) -> DataSet:
    """Makes a corpus and opens it. The folder must not exist, or be empty.

    Equal options give equal tables and images, and, with the same versions of the libraries that corpus.json names,
    equal sounds. processes: one for each core by default; with 1, all is done by a single worker. Raises DataError.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} is there already; expected a folder to make: name another, or remove it")
    espeak.version()
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        _make(draft, options, progress, processes or os.cpu_count() or 1)
        draft.chmod(0o755)
        draft.replace(folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return load_generated(folder)


def _make(draft: Path, options: CorpusOptions, progress: Progress, processes: int) -> None:
    """Tables come last: they list what was made."""
    for split, kind in itertools.product(options.splits, ("image", "audio")):
        (draft / kind / split).mkdir(parents=True)
    rows: dict[Split, list[str]] = {split: [] for split in options.splits}
    total, done = sum(options.count(split) for split in options.splits), 0
    for split, made in _made(draft, options, processes):
        rows[split] += made
        done += len(made)
        progress(f"{split} split", done / total)
    for split, lines in rows.items():
        (draft / table_of(split)).write_text("".join(lines))
    corpus = {
        "name": NAME,
        "format": FORMAT,
        "label_set": LABEL_SET,
        "seed": options.seed,
        "splits": {split: options.count(split) for split in options.splits},
        "options": asdict(options),
        "cues": {
            "image": [field.name for field in fields(Actions)],
            "audio": [field.name for field in fields(Prosody)],
        },
        "speech": espeak.version(),
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }
    (draft / CORPUS_FILE).write_text(json.dumps(corpus, indent=1) + "\n")


def _made(draft: Path, options: CorpusOptions, processes: int) -> Iterator[tuple[Split, list[str]]]:
    """The rows of one chunk after the other, in order. Spawned: a fork would inherit threads in an unknown state."""
    chunks = (
        (split, range(start, min(start + CHUNK, options.count(split))))
        for split in options.splits
        for start in range(0, options.count(split), CHUNK)
    )
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        waiting: deque[tuple[Split, Future[list[str]]]] = deque()
        try:
            for split, numbers in chunks:
                waiting.append((split, pool.submit(_make_chunk, draft, options, split, numbers)))
                if len(waiting) > AHEAD * processes:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _make_chunk(draft: Path, options: CorpusOptions, split: Split, numbers: Sequence[int]) -> list[str]:
    return [_make_example(draft, options, plan_of(options, split, number)) for number in numbers]


def _make_example(draft: Path, options: CorpusOptions, plan: Plan) -> str:
    """Writes an example's image and sound; its row of the table."""
    person = person_of(options.seed, plan.split, plan.person)
    image, audio, text = (plan.shown[modality] for modality in ("image", "audio", "text"))
    names = {
        "image": None if image.missing else f"image/{plan.split}/{plan.id}.jpg",
        "audio": None if audio.missing else f"audio/{plan.split}/{plan.id}.flac",
    }
    cues = {}
    rng = rng_of(options.seed, "text", plan.id)
    emotions = plan.interplay.clauses if plan.interplay else (text.emotion,)
    clauses = [sentence(emotion, text.strength, plan.split, rng) for emotion in emotions]
    if names["image"]:
        rng = rng_of(options.seed, "image", plan.id)
        actions = actions_of(image.emotion, image.strength, person.face.rest, rng)
        data = picture(person.face, actions, image.noise, options.image_side_px, rng)
        cues["image"] = _rounded(actions)
        (draft / names["image"]).write_bytes(data)
    if names["audio"]:
        rng = rng_of(options.seed, "audio", plan.id)
        prosody = prosody_of(audio.emotion, audio.strength, rng)
        said = [(clause, prosody) for clause in clauses]
        if plan.interplay and plan.interplay.stressed is not None:
            clause, _ = said[plan.interplay.stressed]
            said[plan.interplay.stressed] = clause, stressed(prosody, audio.strength)
        (draft / names["audio"]).write_bytes(speech(said, person.voice, audio.noise, rng))
        cues["audio"] = _rounded(prosody)
    spoken = " ".join(clauses)
    written = misheard(spoken, text.noise, rng_of(options.seed, "typing", plan.id)) if text.noise else spoken
    row = {
        "id": plan.id,
        "label": plan.label,
        **names,
        "text": None if text.missing else written,
        "valence": plan.valence,
        "arousal": plan.arousal,
        "cues": cues,
        "speaker": person.name,
        "tags": tags_of(plan),
    }
    return json.dumps(row) + "\n"


def _rounded(shown: Actions | Prosody) -> list[float]:
    return [round(value, 4) for value in astuple(shown)]
