"""CREMA-D (Cao et al. 2014, IEEE Transactions on Affective Computing): 7,442 clips of 91 actors, 6 emotions.

`AudioWAV/1001_IEO_ANG_LO.wav` and `VideoFlash/1001_IEO_ANG_LO.flv`: actor, sentence, emotion, intensity.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from cmt_training.data.reading import COMPANION, Tally, small_data_set
from cmt_training.examples import DataSet, Example, Media

LABELS = {"ANG": "anger", "DIS": "disgust", "FEA": "fear", "HAP": "joy", "NEU": "neutral", "SAD": "sadness"}
SOUNDS, VIDEOS = "AudioWAV", "VideoFlash"
_NAME = re.compile(rf"(\d{{4}})_([A-Z]{{3}})_({'|'.join(LABELS)})_(LO|MD|HI|XX|X)")


def load_cremad(folder: Path) -> DataSet:
    """The folder of AudioWAV, VideoFlash or both; or that of the sounds themselves. Raises DataError."""
    tally = Tally()
    return small_data_set("cremad", folder, _examples(folder, tally), tally, "actor")


def is_cremad(folder: Path) -> bool:
    return any(_NAME.fullmatch(path.stem) for part in _parts(folder) for path in part.iterdir())


def _examples(folder: Path, tally: Tally) -> Iterator[Example]:
    found: dict[str, dict[str, Path]] = {}
    for part in _parts(folder):
        for path in sorted(part.iterdir()):
            if path.name.startswith(COMPANION) or _NAME.fullmatch(path.stem) is None:
                tally.skip("file that is no recording", path.name)
            else:
                found.setdefault(path.stem, {})["image" if part.name == VIDEOS else "audio"] = path
    for name, paths in sorted(found.items()):
        actor, sentence, code, intensity = _NAME.fullmatch(name).groups()  # type: ignore[union-attr]
        media = {m: Media(path) for m, path in paths.items()}
        if "image" in media and "audio" not in media:
            media["audio"] = media["image"]  # the video has the sound too
        yield Example(
            id=name,
            split="train",
            label=LABELS[code],
            image=media.get("image"),
            audio=media.get("audio"),
            speaker=actor,
            tags={"sentence": sentence, "intensity": intensity},
        )


def _parts(folder: Path) -> list[Path]:
    return [folder / name for name in (SOUNDS, VIDEOS) if (folder / name).is_dir()] or [folder]
