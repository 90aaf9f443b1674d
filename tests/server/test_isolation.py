"""Files of formats that few people send are decoded where a crash takes nothing else with it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import failing_decoders
from cmt_pipeline.errors import InvalidInput
from cmt_pipeline.limits import Limits
from cmt_pipeline.preprocess import CONFIG_FILE, TOKENIZER_FILE, PreprocessConfig, everyday
from cmt_server import isolation
from cmt_server.isolation import Isolation
from media.pictures import PICTURES
from media.sounds import SOUNDS

TOKENIZER = Path(__file__).parents[1] / "tiny_text" / TOKENIZER_FILE
AVIF, PNG = PICTURES["AVIF"].make(), PICTURES["PNG"].make()


@pytest.fixture(scope="module")
def isolated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Isolation]:
    folder = tmp_path_factory.mktemp("preprocess")
    (folder / CONFIG_FILE).write_text(PreprocessConfig().to_json())
    (folder / TOKENIZER_FILE).write_bytes(TOKENIZER.read_bytes())
    before = multiprocessing.active_children()
    made = Isolation(folder, Limits())
    yield made
    assert len(multiprocessing.active_children()) > len(before)
    made.close()
    assert multiprocessing.active_children() == before


def test_what_is_decoded_where() -> None:
    """Those that few people send, and whatever lies in the same containers, in processes of their own."""
    apart = {name.partition(",")[0] for name, made in PICTURES.items() if not everyday("image", made.make())}
    assert apart == {"HEIC", "AVIF", "GIF", "BMP", "TIFF"}
    apart = {name.partition(",")[0] for name, made in SOUNDS.items() if not everyday("audio", made.make())}
    assert apart == {"M4A", "MP4", "3GP", "AMR", "AAC", "WebM", "Matroska", "CAF", "QuickTime"}


@pytest.mark.parametrize("name", ["AVIF", "HEIC", "TIFF, LZW"])
def test_the_tensors_are_those_of_the_same_decoder_here(isolated: Isolation, name: str) -> None:
    data = PICTURES[name].make()
    here = isolated.preprocessors["image"](PNG)["pixel_values"]
    there = isolated.preprocessors["image"](data)["pixel_values"]
    assert np.abs(here - there).mean() < 0.04


def test_a_refusal_crosses(isolated: Isolation) -> None:
    with pytest.raises(InvalidInput) as raised:
        isolated.preprocessors["image"](AVIF[:200])
    assert (raised.value.field, raised.value.code) == ("image", "not_decodable")


@pytest.mark.parametrize(
    ("fails", "told"),
    [
        (failing_decoders.crashes, "its decoder crashed on"),
        (failing_decoders.hangs, "takes more than 0.5 s"),
        (failing_decoders.takes_all_memory, "takes more than 1024 MiB"),
    ],
)
def test_a_decoder_that_fails_costs_one_request(
    isolated: Isolation, monkeypatch: pytest.MonkeyPatch, fails: object, told: str
) -> None:
    prepare = isolated.preprocessors["image"]
    assert prepare(AVIF)  # the processes are there
    with monkeypatch.context() as patched:
        patched.setattr(isolation, "_prepare", fails)
        patched.setattr(isolation, "TIMEOUT_S", 0.5)
        with pytest.raises(InvalidInput, match=told) as raised:
            prepare(AVIF)
    assert raised.value.code == "not_decodable"
    with ThreadPoolExecutor(4) as together:
        assert len(list(together.map(prepare, [AVIF, PNG] * 4))) == 8
