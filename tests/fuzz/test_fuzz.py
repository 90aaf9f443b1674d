"""The fuzzer notices every kind of fault, and finds none: a little here, an hour by `make fuzz`."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from fuzz import faulty, rig
from fuzz.__main__ import STATE
from fuzz.mutations import _fit_ogg, _fit_png, mutated
from fuzz.rig import FAULTS, Child, made, scratch, tried, warming
from fuzz.targets import TARGETS
from media.pictures import PICTURES
from media.sounds import SOUNDS

ROOT = Path(__file__).parents[2]
FUZZ = (sys.executable, "-m", "fuzz")

#: Seeds that are made at once, and how many inputs of each target are tried here.
SEEDS = {
    "image": [PICTURES[name].make() for name in ("JPEG", "PNG, with alpha", "WebP", "GIF", "TIFF, LZW")],
    "audio": [SOUNDS[name].make() for name in ("WAV, PCM of 16 bits", "FLAC", "Ogg, Vorbis", "M4A, AAC", "WebM, Opus")],
}
TRIED = {
    "image": 150,
    "audio": 100,
    "text": 100,
    "typed-text": 50,
    "tensors": 20,
    "manifest": 50,
    "model-config": 15,
    "session-state": 50,
    "policy": 30,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with scratch(tmp_path_factory.mktemp("fuzz")) as made_folder:
        yield made_folder


@pytest.mark.long
def test_every_fault_is_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the next input is met as if nothing had been."""
    before = multiprocessing.active_children()
    with Child(folder, [(faulty.run, b"loads")]) as child:
        for fault in FAULTS:
            with monkeypatch.context() as patched:
                if fault == "hang":
                    patched.setattr(rig, "STUCK_S", 0.2)
                assert child.meet(faulty.TARGET, fault.encode()).fault == fault
            assert child.meet(faulty.TARGET, b"sound").word == "answered"
        refused = child.meet(faulty.TARGET, b"refused")
    assert (refused.word, refused.fault) == ("empty", None)
    assert multiprocessing.active_children() == before


def test_a_fault_is_kept_once(folder: Path, tmp_path: Path) -> None:
    with Child(folder, []) as child:
        tally = tried(child, faulty.TARGET, [b"untyped", b"untyped", b"sound"], tmp_path, 0, lambda t: t.tried < 3)
    (kept,) = tmp_path.iterdir()
    assert (kept.name.split(".")[:2], kept.read_bytes()) == (["faulty", "untyped"], b"untyped")
    assert (tally.count("untyped"), tally.words["answered"]) == (2, 1)


def test_a_number_names_an_input() -> None:
    seeds = list(SEEDS["image"])
    numbers = range(40)
    again = [made("image", seeds, 3, number) for number in reversed(numbers)][::-1]
    assert again == [made("image", seeds, 3, number) for number in numbers]
    assert again[: len(seeds)] == seeds
    assert len({*again}) == len(numbers)
    assert again != [made("image", seeds, 4, number) for number in numbers]


def test_checksums_fit_again() -> None:
    """Those of files that nobody damaged are what they were."""
    for data, fit in ((PICTURES["PNG"].make(), _fit_png), (SEEDS["audio"][2], _fit_ogg)):
        out = bytearray(data)
        fit(out)
        assert bytes(out) == data


def test_no_input_is_too_short_to_mutate() -> None:
    assert all(mutated(data, data, Random(seed)) is not None for data in (b"", b"a") for seed in range(300))


@pytest.mark.long
def test_little_is_found_at_once(folder: Path, tmp_path: Path) -> None:
    targets = [target for target in TARGETS if target.name in TRIED]
    seeds = {target.name: SEEDS.get(target.name) or target.seeds(folder)[:5] for target in targets}
    with Child(folder, [each for target in targets for each in warming(target, seeds[target.name])]) as child:
        for target in targets:
            most = TRIED[target.name]
            tally = tried(child, target, seeds[target.name], tmp_path, 0, lambda t, most=most: t.tried < most)
            assert not tally.faults, f"kept in {tmp_path}"
            assert len(tally.words) > 1, "some are answered, some refused"


@pytest.mark.slow
def test_a_minute_finds_nothing(tmp_path: Path) -> None:
    out = tmp_path / "fuzz.json"
    done = subprocess.run([*FUZZ, "--seconds", "60", "--seed", "7", "--out", str(out)], env=_environment())
    found = json.loads(out.read_text())
    assert (done.returncode, found["faults"]) == (0, [])
    assert {target["target"] for target in found["targets"] if target["tried"]} == {t.name for t in TARGETS}


@pytest.mark.slow
@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_what_is_interrupted_leaves_nothing(by: signal.Signals) -> None:
    before = set(STATE.glob("scratch-*"))
    process = subprocess.Popen([*FUZZ, "--target", "text"], env=_environment(), stdout=-1, text=True, process_group=0)
    assert process.stdout
    assert process.stdout.readline().startswith("text: 0 inputs")
    os.kill(process.pid, by)
    process.communicate()
    assert process.returncode == 128 + by
    assert set(STATE.glob("scratch-*")) == before
    with contextlib.suppress(ProcessLookupError):
        while not os.killpg(process.pid, 0):  # multiprocessing's own process ends when it sees that the others have
            time.sleep(0.05)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def test_the_page_says_what_an_hour_of_it_found() -> None:
    found = json.loads((ROOT / "perf/results/fuzz.json").read_text())
    page = " ".join((ROOT / "docs" / "inputs.md").read_text().split())
    assert found["conditions"]["seconds"] == 3600
    assert f"{found['tried']:,} inputs, {found['crash']} crashes, {found['memory']} over the budget" in page
    assert f"{found['untyped']} untyped errors; {found['hang']} took longer than 2 s" in page
    assert f"the slowest {found['slowest']['s']:.1f} s, the biggest grew by {found['biggest']['mb']:.0f} MB" in page
    assert found["contract"] == 0
