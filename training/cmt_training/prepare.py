"""Examples -> ready tensors on disk, through the very preprocessing that serving uses.

    CACHE/meld-4f0c…/index.json     every item: label, what it has, where its tensors lie; what was skipped, and why
    CACHE/meld-4f0c…/pixels.npy     uint8 [images, 3, 224, 224]
    CACHE/meld-4f0c…/samples.npy    float16, all sounds one after another, normalised as the audio encoder takes them
    CACHE/meld-4f0c…/tokens.npy     int32, all token ids one after another

The name holds a digest of the data and of the preprocessing, so that neither can be mixed up with another; a folder
appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from cmt_pipeline.errors import InvalidInput
from cmt_pipeline.labels import labels_of
from cmt_pipeline.modality import MODALITIES, Modality
from cmt_pipeline.preprocess import PreprocessConfig, Preprocessor, fingerprint, make_preprocessors
from cmt_pipeline.progress import Progress
from cmt_pipeline.tensors import IMAGE_SIDE, Array
from cmt_release.locks import make_once
from cmt_training.examples import SPLITS, DataError, DataSet, Example, Split

FORMAT = 4
INDEX_FILE, PIXELS_FILE, SAMPLES_FILE, TOKENS_FILE = "index.json", "pixels.npy", "samples.npy", "tokens.npy"
IMAGE_SHAPE = (3, IMAGE_SIDE, IMAGE_SIDE)
CHUNK = 16  # examples a worker takes at a time
MANY_CHUNKS = 8  # fewer are done before a worker has started


@dataclass(frozen=True)
class Item:
    """One example's place in the cache: image: row of pixels.npy; audio, text: start and length; None: absent."""

    id: str
    split: Split
    label: str
    image: int | None
    audio: tuple[int, int] | None
    text: tuple[int, int] | None
    valence: float | None
    arousal: float | None
    cues: dict[Modality, tuple[float, ...]]
    tags: dict[str, str]
    speaker: str

    def has(self, modality: Modality) -> bool:
        return getattr(self, modality) is not None


@dataclass(frozen=True)
class Prepared:
    """A prepared data set. skipped: reason -> how many, those of the loader and those found while preparing.

    notes: the data set's.
    """

    folder: Path
    name: str
    label_set: str
    preprocess: PreprocessConfig
    items: tuple[Item, ...]
    skipped: dict[str, int]
    notes: tuple[str, ...] = ()

    def of(self, split: Split) -> list[int]:
        """Indices of a split's items. Raises DataError when there are none."""
        found = [index for index, item in enumerate(self.items) if item.split == split]
        if not found:
            counts = dict(Counter(item.split for item in self.items))
            raise DataError(
                f"the split {split!r} of {self.name!r} is empty (items: {counts}); expected at least one item: "
                "complete the data set's folder, and see what was skipped"
            )
        return found

    def array(self, file: str) -> Array:
        array: Array = np.load(self.folder / file, mmap_mode="r", allow_pickle=False)
        return array


@dataclass(frozen=True)
class _Ready:
    """A worker's result for one example: compact tensors, and why some are lacking."""

    pixels: Array | None
    samples: Array | None
    tokens: Array | None
    skipped: tuple[str, ...]


def prepare(
    data: DataSet, config: PreprocessConfig, tokenizer: Path, cache: Path, progress: Progress, workers: int = 0
) -> Prepared:
    """The data set's ready tensors, from the cache where they lie there. workers: 0 takes one for each core.

    An image, sound or text that can't be read is left out and counted, and so is an example that has nothing left.
    Raises DataError for labels outside of the label set, NaN, and data without a single usable example.
    """
    check(data)
    folder = cache / f"{data.name}-{key_of(data, config, tokenizer)[:16]}"
    make_once(folder, lambda draft: _write(data, config, tokenizer, draft, progress, workers or os.cpu_count() or 1))
    return open_prepared(folder)


def open_prepared(folder: Path) -> Prepared:
    """What lies in a folder of the cache."""
    values = json.loads((folder / INDEX_FILE).read_text())
    items = tuple(_item_of(item) for item in values["items"])
    config = PreprocessConfig.from_json(json.dumps(values["preprocess"]))
    return Prepared(
        folder, values["name"], values["label_set"], config, items, values["skipped"], tuple(values["notes"])
    )


def _item_of(values: dict[str, Any]) -> Item:
    """JSON has no tuples."""
    spans = {m: tuple(values[m]) if values[m] is not None else None for m in ("audio", "text")}
    cues = {m: tuple(found) for m, found in values["cues"].items()}
    return Item(**values | spans | {"cues": cues})


def check(data: DataSet) -> None:
    """Raises DataError for what no training can use, naming the example and how to fix it."""
    labels = labels_of(data.label_set)
    for example in data.examples:
        if example.label not in labels:
            raise DataError(
                f"{example.id}: label: got {example.label!r}; expected one of {data.label_set}'s: "
                f"{', '.join(labels)}. Correct the annotation or choose another label set"
            )
        if example.split not in SPLITS:
            raise DataError(f"{example.id}: split: got {example.split!r}; expected one of {', '.join(SPLITS)}")
        for name in ("valence", "arousal"):
            value = getattr(example, name)
            if value is not None and not math.isfinite(value):
                raise DataError(
                    f"{example.id}: {name}: got {value}; expected a finite number or none: correct the "
                    f"annotation{_lies_in(example)}"
                )


def key_of(data: DataSet, config: PreprocessConfig, tokenizer: Path) -> str:
    """SHA-256 over the examples, their files' sizes and times, and whatever decides their preprocessing."""
    digest = hashlib.sha256(f"{FORMAT} {data.name} {data.label_set} {fingerprint(config, tokenizer)}".encode())
    for example in data.examples:
        digest.update(repr((example, [_stamp(example, m) for m in ("image", "audio")])).encode())
    return digest.hexdigest()


def _stamp(example: Example, modality: Modality) -> tuple[int, int] | None:
    media = getattr(example, modality)
    try:
        stat = media.path.stat() if media is not None else None
    except OSError:
        return None
    return (stat.st_size, stat.st_mtime_ns) if stat is not None else None


def _write(
    data: DataSet, config: PreprocessConfig, tokenizer: Path, draft: Path, progress: Progress, workers: int
) -> None:
    draft.mkdir()
    skipped = Counter({reason: len(ids) for reason, ids in data.skipped.items()})
    items: list[Item] = []
    with _Arrays(draft) as arrays:
        work = _in_parallel(_without_repeats(data.examples), config, tokenizer, workers)
        for done, (example, (_, ready)) in enumerate(zip(data.examples, work, strict=True)):
            progress(f"preparing {data.name}", done / len(data.examples))
            skipped.update(ready.skipped)
            item = arrays.item_of(example, ready)
            if not any(item.has(m) for m in MODALITIES):
                skipped["nothing left of the example"] += 1
                continue
            items.append(item)
    if not items:
        raise DataError(
            f"no usable example came out of {len(data.examples)} of {data.name!r} (skipped: {dict(skipped)}); "
            "expected at least one: check the folder and its media files"
        )
    index = {
        "name": data.name,
        "label_set": data.label_set,
        "preprocess": asdict(config),
        "skipped": dict(skipped),
        "notes": data.notes,
        "items": [asdict(item) for item in items],
    }
    (draft / INDEX_FILE).write_text(json.dumps(index) + "\n")


def _without_repeats(examples: Sequence[Example]) -> list[Example]:
    """Each without what an earlier one has too, as paired examples have: that is prepared once."""
    seen: set[tuple[Modality, Any]] = set()
    found = []
    for example in examples:
        repeated: dict[str, Any] = {m: None for m in MODALITIES if (m, getattr(example, m)) in seen}
        found.append(replace(example, **repeated) if repeated else example)
        seen.update((m, getattr(example, m)) for m in MODALITIES if getattr(example, m) is not None)
    return found


def _in_parallel(
    examples: Sequence[Example], config: PreprocessConfig, tokenizer: Path, workers: int
) -> Iterator[tuple[Example, _Ready]]:
    """Examples and their outcomes, in order; a bounded number is under way at a time."""
    work = partial(_prepare_chunk, config, tokenizer)
    chunks = [examples[start : start + CHUNK] for start in range(0, len(examples), CHUNK)]
    if workers == 1 or len(chunks) < MANY_CHUNKS:
        for chunk in chunks:
            yield from zip(chunk, work(chunk), strict=True)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting = iter(chunks)
        pending = [(chunk, pool.submit(work, chunk)) for chunk in islice(waiting, 3 * workers)]
        while pending:
            chunk, future = pending.pop(0)
            ready = future.result()
            pending += [(following, pool.submit(work, following)) for following in islice(waiting, 1)]
            yield from zip(chunk, ready, strict=True)


def _prepare_chunk(config: PreprocessConfig, tokenizer: Path, examples: Sequence[Example]) -> list[_Ready]:
    preprocessors = make_preprocessors(config, tokenizer)
    return [_prepare_one(preprocessors, config, example) for example in examples]


def _prepare_one(preprocessors: dict[Modality, Preprocessor], config: PreprocessConfig, example: Example) -> _Ready:
    made: dict[Modality, dict[str, Array]] = {}
    skipped = []
    for m in MODALITIES:
        if getattr(example, m) is None:
            continue
        try:
            made[m] = preprocessors[m](_bytes_of(example, m))
        except InvalidInput as error:
            if error.code == "not_finite":
                raise DataError(
                    f"{example.id}: {error.message}{_lies_in(example, m)}; re-encode the file or remove it"
                ) from None
            skipped.append(f"{m}.{error.code}")
        except (OSError, DataError):
            skipped.append(f"{m} can't be read")
    return _Ready(
        as_bytes(made["image"]["pixel_values"], config) if "image" in made else None,
        made["audio"]["input_values"][: int(made["audio"]["num_samples"][0])].astype(np.float16)
        if "audio" in made
        else None,
        made["text"]["input_ids"][: int(made["text"]["attention_mask"].sum())].astype(np.int32)
        if "text" in made
        else None,
        tuple(skipped),
    )


def as_bytes(pixel_values: Any, config: PreprocessConfig) -> Array:
    """`pixel_values` float32 [..., 3, height, width] -> the uint8 pixels they were made of."""
    mean, std = (np.asarray(values).reshape(3, 1, 1) for values in (config.image_mean, config.image_std))
    pixels: Array = np.rint((pixel_values * std + mean) * 255).astype(np.uint8)
    return pixels


def as_pixel_values(pixels: NDArray[np.uint8], config: PreprocessConfig) -> NDArray[np.float32]:
    """uint8 pixels [..., 3, height, width] -> the very `pixel_values` float32 that serving makes of them."""
    mean, std = (np.asarray(values, np.float64) for values in (config.image_mean, config.image_std))
    scale = (1.0 / (255.0 * std)).astype(np.float32).reshape(3, 1, 1)
    shift = (-mean / std).astype(np.float32).reshape(3, 1, 1)
    values: NDArray[np.float32] = pixels * scale + shift
    return values


def _bytes_of(example: Example, modality: Modality) -> bytes:
    if modality == "text":
        return str(example.text).encode()
    from cmt_training.data.media import read_audio, read_image

    media = example.image if modality == "image" else example.audio
    assert media is not None
    return read_image(media) if modality == "image" else read_audio(media)


def _lies_in(example: Example, modality: Modality | None = None) -> str:
    found = [getattr(example, m) for m in ((modality,) if modality else ("image", "audio"))]
    paths = sorted({str(media.path) for media in found if media is not None and not isinstance(media, str)})
    return f" ({', '.join(paths)})" if paths else ""


class _Arrays:
    """The three files while they grow, and where in them each image, sound and text lies."""

    def __init__(self, folder: Path) -> None:
        self._places: dict[tuple[Modality, Any], tuple[int, int]] = {}
        self.pixels = GrowingArray(folder / PIXELS_FILE, np.dtype(np.uint8), IMAGE_SHAPE)
        self.samples = GrowingArray(folder / SAMPLES_FILE, np.dtype(np.float16), ())
        self.tokens = GrowingArray(folder / TOKENS_FILE, np.dtype(np.int32), ())

    def item_of(self, example: Example, ready: _Ready) -> Item:
        """ready: what of the example wasn't there before."""
        made = (self.pixels, ready.pixels), (self.samples, ready.samples), (self.tokens, ready.tokens)
        for m, (array, rows) in zip(MODALITIES, made, strict=True):
            if rows is not None:
                self._places[m, getattr(example, m)] = array.add(rows)
        image, audio, text = (self._places.get((m, getattr(example, m))) for m in MODALITIES)
        return Item(
            example.id,
            example.split,
            example.label,
            image[0] if image is not None else None,
            audio,
            text,
            example.valence,
            example.arousal,
            dict(example.cues),
            dict(example.tags),
            example.speaker,
        )

    def __enter__(self) -> _Arrays:
        return self

    def __exit__(self, *_: object) -> None:
        for array in (self.pixels, self.samples, self.tokens):
            array.close()


class GrowingArray:
    """An .npy file that rows are added to; its header, of fixed size, is written last."""

    def __init__(self, path: Path, dtype: np.dtype[Any], row: tuple[int, ...]) -> None:
        self._dtype, self._row, self._count = dtype, row, 0
        self._file: IO[bytes] = path.open("wb")
        self._header()

    def add(self, rows: Array) -> tuple[int, int]:
        """Where the rows begin, and how many they are."""
        rows = rows[None] if rows.shape == self._row else rows
        start = self._count
        self._file.write(np.ascontiguousarray(rows, self._dtype).tobytes())
        self._count += len(rows)
        return start, len(rows)

    def close(self) -> None:
        self._file.seek(0)
        self._header()
        self._file.close()

    def _header(self) -> None:
        """NumPy leaves room in it for the first axis to grow."""
        shape = (self._count, *self._row)
        description = {"descr": self._dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, description)  # type: ignore[no-untyped-call]
