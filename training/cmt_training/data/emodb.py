"""EmoDB, the Berlin Database of Emotional Speech (Burkhardt et al., Interspeech 2005): 535 sounds of ten actors.

`SSTTTEv.wav`: speaker, sentence, the emotion's first letter in German, version (a to f).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from cmt_training.data.reading import Tally, small_data_set
from cmt_training.examples import DataSet, Example, Media

LABELS = {
    "W": "anger",  # Wut
    "L": "boredom",  # Langeweile
    "E": "disgust",  # Ekel
    "A": "fear",  # Angst
    "F": "joy",  # Freude
    "T": "sadness",  # Trauer
    "N": "neutral",
}
_NAME = re.compile(r"(\d\d)([ab]\d\d)([WLEAFTN])([a-z])\.(?:wav|flac)")


def load_emodb(folder: Path) -> DataSet:
    """The folder of the sounds, or the one that holds it as `wav`. Raises DataError."""
    tally = Tally()
    return small_data_set("emodb", folder, _examples(_sounds(folder), tally), tally, "speaker")


def is_emodb(folder: Path) -> bool:
    return any(_NAME.fullmatch(path.name) for path in _sounds(folder).iterdir())


def _examples(sounds: Path, tally: Tally) -> Iterator[Example]:
    for path in sorted(sounds.iterdir()):
        match = _NAME.fullmatch(path.name)
        if match is None:
            tally.skip("file that is no recording", path.name)
            continue
        speaker, sentence, letter, version = match.groups()
        tags = {"sentence": sentence, "version": version}
        yield Example(path.stem, "train", LABELS[letter], audio=Media(path), speaker=speaker, tags=tags)


def _sounds(folder: Path) -> Path:
    return folder / "wav" if (folder / "wav").is_dir() else folder
