"""The corpus on disk: equal for equal seeds, whole or absent, readable by what serves."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from cmt_pipeline.audio import decode_audio
from cmt_pipeline.image import decode_image
from cmt_training.data import open_data_set
from cmt_training.data.media import read_audio, read_image
from cmt_training.examples import SPLITS, DataError, DataSet
from cmt_training.generate import corpus, espeak
from cmt_training.generate import options as of_corpus
from cmt_training.generate.corpus import generate_corpus
from cmt_training.generate.options import CorpusOptions
from cmt_training.generate.voices import (
    HIGH_VARIANTS,
    LANGUAGES,
    LOW_VARIANTS,
    MAX_S,
    MIN_S,
    PROSODY,
    prosody_of,
    speech,
    voice_of,
)

OPTIONS = CorpusOptions(items=60, seed=3, image_side_px=64)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpora") / "generated"
    told: list[float] = []
    generate_corpus(folder, OPTIONS, lambda _, done: told.append(done), processes=2)
    assert told == sorted(told)
    assert told[-1] == 1
    return folder


@pytest.fixture(scope="module")
def opened(made: Path) -> DataSet:
    return open_data_set(made)


@pytest.mark.long
def test_it_is_named_generated_and_says_how_it_was_made(made: Path, opened: DataSet) -> None:
    assert (opened.name, opened.label_set, opened.skipped) == ("generated", "meld", {})
    manifest = json.loads((made / "corpus.json").read_text())
    assert manifest["name"] == "generated"
    assert manifest["speech"].startswith("espeak-ng 1.")
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in manifest["options"].items()}
    assert CorpusOptions(**values) == OPTIONS
    assert (
        {split: len(opened.of(split)) for split in SPLITS}
        == manifest["splits"]
        == {"train": 42, "validation": 6, "test": 12}
    )


def test_some_labels_of_a_data_set_leave_the_others_out(made: Path, opened: DataSet) -> None:
    some = open_data_set(made, label_set="joy,anger")
    assert some.label_set == "joy,anger"
    assert [e.id for e in some.examples] == [e.id for e in opened.examples if e.label in ("joy", "anger")]
    assert len(some.examples) + sum(map(len, some.skipped.values())) == len(opened.examples)
    with pytest.raises(DataError, match="got labels calm for generated; expected some of neutral, surprise"):
        open_data_set(made, label_set="joy,calm")


def test_people_are_of_one_split_each(opened: DataSet) -> None:
    people = [{found.speaker for found in opened.of(split)} for split in SPLITS]
    assert sum(map(len, people)) == len(set.union(*people))


def test_media_are_what_serving_takes(opened: DataSet) -> None:
    for found in opened.examples:
        assert found.image or found.audio or found.text
        absent = {name for name in ("image", "audio", "text") if getattr(found, name) is None}
        assert absent == set(found.tags.get("missing", "").split(",")) - {""}
        if found.image:
            assert decode_image(read_image(found.image)).size == (64, 64)
        if found.audio:
            sound = decode_audio(read_audio(found.audio))
            assert MIN_S <= len(sound) / 16_000 <= MAX_S
            assert soundfile.info(found.audio.path).samplerate == 16_000
            assert 0.001 < sound.std() < 0.5


@pytest.mark.long
def test_equal_options_give_equal_files_however_many_work(made: Path, tmp_path: Path) -> None:
    generate_corpus(tmp_path / "again", OPTIONS, processes=1)
    assert files_of(tmp_path / "again") == files_of(made)


@pytest.mark.long
def test_a_test_split_under_noise_has_the_same_people_and_labels(opened: DataSet, tmp_path: Path) -> None:
    noisy = generate_corpus(tmp_path / "noisy", of_corpus.test_variation(OPTIONS, "noise", 0.8), processes=1)
    assert [(e.id, e.label, e.speaker) for e in noisy.examples] == [
        (e.id, e.label, e.speaker) for e in opened.of("test")
    ]
    assert not noisy.of("train")
    assert {found.tags["noisy"] for found in noisy.examples} == {"image,audio,text"}


def test_another_seed_gives_other_people(made: Path) -> None:
    from cmt_training.generate.people import person_of

    assert person_of(3, "test", 0) == person_of(3, "test", 0)
    assert len({repr(person_of(seed, split, 0)) for seed in (3, 4) for split in SPLITS}) == 6


def test_what_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(corpus, "_made", lambda *_: iter(interrupted, 0))
    with pytest.raises(KeyboardInterrupt):
        generate_corpus(tmp_path / "never", OPTIONS)
    assert not list(tmp_path.iterdir())


def test_a_folder_in_use_is_refused(made: Path) -> None:
    before = files_of(made)
    with pytest.raises(DataError, match="is there already"):
        generate_corpus(made, OPTIONS)
    assert files_of(made) == before


def test_without_espeak_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(espeak.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(espeak.ctypes.util, "find_library", lambda _: None)
    espeak._engine.cache_clear()
    try:
        with pytest.raises(DataError, match=r'no espeak-ng is installed: pip install "cmt-triton\[train\]"'):
            generate_corpus(tmp_path / "never", OPTIONS)
    finally:
        espeak._engine.cache_clear()
    assert not list(tmp_path.iterdir())


def test_an_unknown_voice_is_named() -> None:
    with pytest.raises(DataError, match=r"can't say .*en-nowhere"):
        espeak.speak(espeak.Utterance("Hello.", "en-nowhere", 180, 50, 50))


@pytest.mark.long
@pytest.mark.parametrize("variant", HIGH_VARIANTS + LOW_VARIANTS)
def test_every_voice_speaks_and_says_the_same_twice(variant: str) -> None:
    for language in LANGUAGES:
        utterance = espeak.Utterance("Did you hear that?", language + variant, 200, 60, 50)
        first = espeak.speak(utterance)
        assert len(first) > 0.4 * espeak.sample_rate_hz()
        np.testing.assert_array_equal(first, espeak.speak(utterance))


@pytest.mark.long
@pytest.mark.parametrize(("louder", "quieter"), [("anger", "sadness"), ("joy", "disgust"), ("surprise", "neutral")])
def test_prosody_is_heard(louder: str, quieter: str) -> None:
    assert set(PROSODY) == {*of_corpus.SHARES, "irony"}
    loudness = []
    for emotion in (louder, quieter):
        sounds = [
            soundfile.read(io.BytesIO(speech([("I have to go now.", prosody_of(emotion, 1.0, rng))], voice, 0.0, rng)))[
                0
            ]
            for rng in map(np.random.default_rng, range(6))
            for voice in [voice_of(rng)]
        ]
        loudness.append(np.mean([np.sqrt(np.mean(sound**2)) for sound in sounds]))
    assert loudness[0] > 1.2 * loudness[1]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "corpus.json",
            lambda text: text.replace('"format": 2', '"format": 9'),
            r"corpus\.json isn't of a generated corpus",
        ),
        ("corpus.json", lambda text: text[:20], r"corpus\.json isn't JSON"),
        ("test.jsonl", lambda _: "", "the test split of generated is empty"),
        ("test.jsonl", lambda text: text[:-9], r"test\.jsonl, line 12 isn't JSON"),
        (
            "test.jsonl",
            lambda text: text.replace('"label": "', '"label": "un'),
            r"test\.jsonl, line 1: the label is 'un",
        ),
        (
            "test.jsonl",
            lambda text: text.replace('"valence": ', '"valence": NaN, "was": '),
            r"line 1: valence is 'nan'",
        ),
        ("test.jsonl", lambda text: text.replace('"image/', '"../image/'), "expected a file in the corpus"),
        (
            "test.jsonl",
            lambda text: text.replace('"cues": {"image": [', '"cues": {"image": [1, '),
            "expected 13 finite",
        ),
        ("test.jsonl", lambda text: text.replace('"cues": {"image": [', '"cues": {"image": ["x", '), "finite numbers"),
        ("test.jsonl", None, r"test\.jsonl isn't there"),
    ],
)
def test_damaged_tables_are_named(
    made: Path, tmp_path: Path, name: str, change: Callable[[str], str] | None, message: str
) -> None:
    for path in made.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    damaged = tmp_path / name
    if change is None:
        damaged.unlink()
    else:
        damaged.write_text(change(damaged.read_text()))
    with pytest.raises(DataError, match=message):
        open_data_set(tmp_path, "generated")


@pytest.mark.long
def test_the_verb_makes_one_and_refuses_to_make_it_again(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cmt_cli.main", "corpus", "new", "--items", "20", "--image-side-px", "32"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    for status in (0, 2):
        ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
        assert ran.returncode == status, ran.stderr
    assert "is there already" in ran.stderr
    assert len(open_data_set(tmp_path / "new").examples) == 20
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_options_keep_their_defaults_in_one_place() -> None:
    from cmt_cli.corpus import corpus as verb

    defaults = CorpusOptions()
    given = dict(zip(verb.__annotations__, verb.__defaults__ or (), strict=False))
    shared = [name for name in given if hasattr(defaults, name)]
    assert len(shared) == 8
    assert replace(defaults, **{name: given[name] for name in shared}) == defaults
