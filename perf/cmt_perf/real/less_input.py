"""What input saves that is no larger than it must be, and what that costs: less_input.json of results.

    python -m cmt_perf.real.less_input WORK DATA

Sounds: EmoDB's, through Whisper-tiny.en's int8 engine on one thread, padded to the longest that is accepted, to their
bucket, or not at all. Pictures: JPEGs of 12 megapixels, an enlarged face of FER2013 before a grey wall, with a sensor's
noise, until they are ready for the encoder, their face found. All ways in turns. Weighted F1 is that of a logistic
regression on the mean of what the frozen encoder says: of sounds each speaker's by one that never heard them, of
pictures by one of 1,000 other faces of FER2013.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any, cast
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image, JpegImagePlugin
from sklearn.metrics import f1_score

from cmt_engine.engine import open_engine
from cmt_export.checkpoint import Checkpoint, checkpoint_from_preset
from cmt_perf.conditions import conditions, to_text
from cmt_perf.real.less_work import FACES, built, cross_validated, regression
from cmt_perf.real.tables import sampled, unpacked
from cmt_perf.real.trial import Trial
from cmt_pipeline.buckets import AUDIO_SAMPLES
from cmt_pipeline.image import ImagePreprocessor
from cmt_pipeline.preprocess import make_preprocessors
from cmt_pipeline.stages import STAGES, sized
from cmt_pipeline.tensors import Array
from cmt_training.data import open_data_set
from cmt_training.data.media import read_audio, read_image
from cmt_training.examples import Example, Media
from cmt_training.markdown import markdown_table

RESULT = Path("perf/results/less_input.json")
#: Told as they are asked for; of each kind the largest first.
LONGEST, BUCKET, OWN, AGAIN = "all of 16 s", "as long as its bucket", "as long as it is", "the same, met before"
WHOLE, SMALL = "decoded whole", "decoded as small as a face needs"
PICTURES, PICTURE_SIZE, FACE_SIDE, GRAIN = 100, (4000, 3000), 1200, 6.0
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as DINOv2's


@dataclass(frozen=True)
class Row:
    """ms: mean of an item; f1: weighted."""

    what: str
    asked: str
    ms: float
    times_as_fast: float
    f1: float


def sounds(trial: Trial) -> list[Row]:
    checkpoint = checkpoint_from_preset(str(trial.preset()), "meld")
    examples = open_data_set(unpacked(trial.data / "emodb" / "emodb.tar", trial.work)).examples
    prepare = make_preprocessors(checkpoint.config.preprocess, checkpoint.tokenizer)["audio"]
    times: dict[str, list[float]] = {way: [] for way in (LONGEST, BUCKET, OWN, AGAIN)}
    means: dict[str, list[Array]] = {way: [] for way in times}
    with TemporaryDirectory() as work:
        stage = sized(STAGES["encode_audio"], checkpoint.model.sizes)
        built(checkpoint, stage, "int8", Path(work))
        runner = open_engine(Path(work) / "engine", threads=1)
        for example in examples:
            ready = prepare(read_audio(cast(Media, example.audio)))
            (count,) = ready["num_samples"]
            lengths = {LONGEST: AUDIO_SAMPLES[-1], BUCKET: len(ready["input_values"]), OWN: count, AGAIN: count}
            for way, length in lengths.items():
                padded = np.zeros((1, length), np.float32)
                padded[0, :count] = ready["input_values"][:count]
                start = time.perf_counter()
                found = runner.run({"input_values": padded, "num_samples": ready["num_samples"][None]})
                times[way].append(1e3 * (time.perf_counter() - start))
                real = found["audio_mask"][0].astype(bool)
                means[way].append(found["audio_features"][0][real].mean(axis=0))
    labels = np.array([example.label for example in examples])
    speakers = np.array([example.speaker for example in examples])
    folds = [speakers == speaker for speaker in sorted(set(speakers))]
    f1 = {way: cross_validated(folds, labels, np.array(found), np.array(found)) for way, found in means.items()}
    return _rows("a sound, Whisper-tiny.en", times, f1)


def pictures(trial: Trial) -> list[Row]:
    checkpoint = checkpoint_from_preset(str(trial.preset()), "meld")
    faces = unpacked(trial.data / "fer2013" / "fer2013.tar.gz", trial.work)
    data = open_data_set(sampled(faces, FACES, trial.work / "tables" / "faces-less.csv"))
    learnt, asked = data.of("train"), data.of("test")[:PICTURES]
    plain, prepare = ImagePreprocessor(MEAN, STD), ImagePreprocessor(MEAN, STD, face="auto")
    model = regression().fit(
        _says(checkpoint, [plain(read_image(cast(Media, example.image)))["pixel_values"] for example in learnt]),
        [example.label for example in learnt],
    )
    times: dict[str, list[float]] = {WHOLE: [], SMALL: []}
    pixels: dict[str, list[Array]] = {way: [] for way in times}
    rng = np.random.default_rng(0)
    for example in asked:
        picture = _photograph(example, rng)
        for way in times:
            with decoded_whole() if way == WHOLE else nullcontext():
                start = time.perf_counter()
                pixels[way].append(prepare(picture)["pixel_values"])
                times[way].append(1e3 * (time.perf_counter() - start))
    labels = [example.label for example in asked]
    f1 = {
        way: round(float(f1_score(labels, model.predict(_says(checkpoint, found)), average="weighted")), 4)
        for way, found in pixels.items()
    }
    return _rows("a JPEG of 12 megapixels with a face", times, f1)


def decoded_whole() -> AbstractContextManager[Any]:
    """Meanwhile decoders of JPEG give every pixel."""
    return patch.object(JpegImagePlugin.JpegImageFile, "draft", lambda _self, _mode, _size: None)


def _photograph(example: Example, rng: np.random.Generator) -> bytes:
    """A JPEG: the example's face, enlarged, somewhere in front of a grey wall, with a sensor's noise."""
    face = Image.open(io.BytesIO(read_image(cast(Media, example.image)))).convert("L")
    width, height = PICTURE_SIZE
    wall = Image.new("L", PICTURE_SIZE, 128)
    place = (int(rng.integers(width - FACE_SIDE)), int(rng.integers(height - FACE_SIDE)))
    wall.paste(face.resize((FACE_SIDE, FACE_SIDE), Image.Resampling.BICUBIC), place)
    noisy = np.asarray(wall.convert("RGB"), np.float32) + rng.normal(0, GRAIN, (height, width, 3)).astype(np.float32)
    packed = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(packed, "JPEG", quality=90)
    return packed.getvalue()


@torch.no_grad()
def _says(checkpoint: Checkpoint, pixels: Sequence[Array]) -> Array:
    """[items, width]: the mean of what the image encoder's backbone says of each."""
    backbone = cast(Any, checkpoint.model.encoders["image"]).backbone.eval()
    return np.stack([backbone(torch.from_numpy(one[None])).last_hidden_state[0].mean(dim=0).numpy() for one in pixels])


def _rows(what: str, times: Mapping[str, Sequence[float]], f1: Mapping[str, float]) -> list[Row]:
    whole = fmean(next(iter(times.values())))
    return [
        Row(what, way, round(fmean(found), 1), round(whole / fmean(found), 2), f1[way]) for way, found in times.items()
    ]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown."""
    cells = [
        (row["what"], row["asked"], f"{row['ms']:.1f}", f"{row['times_as_fast']:.2f}", f"{row['f1']:.3f}")
        for row in rows
    ]
    return markdown_table(["input", "", "ms", "times as fast", "weighted F1"], cells)


def main(work: Path, data: Path) -> None:
    work.mkdir(parents=True, exist_ok=True)
    trial = Trial(work, data)
    rows = [asdict(row) for row in (*sounds(trial), *pictures(trial))]
    RESULT.write_text(to_text({"rows": rows, "conditions": conditions(pictures=PICTURES, threads=1)}))
    print(table(rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
