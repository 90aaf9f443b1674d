"""A folder of files -> a row for each item: its answer, or why there is none.

Files that differ in their suffix alone are one item: a.jpg, a.wav and a.txt. A subfolder is part of the name (b/a).
What begins with a dot is passed over, and so are other suffixes.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cmt_client.client import EmotionClient
from cmt_client.client_base import DEFAULT_CONCURRENCY
from cmt_client.errors import EmotionError, InvalidInput, Overloaded, ServerUnavailable
from cmt_client.files import file_bytes
from cmt_client.journal import Row, open_journal
from cmt_client.windows import LongEmotion
from cmt_pipeline.progress import Progress, no_progress

Kind = Literal["image", "audio", "text", "video"]
SUFFIXES: Mapping[Kind, Sequence[str]] = {
    "image": ("jpg", "jpeg", "png", "webp", "heic", "heif", "avif", "gif", "bmp", "tif", "tiff", "ppm"),
    "audio": ("wav", "flac", "ogg", "oga", "opus", "mp3", "m4a", "aac", "amr", "caf", "aif", "aiff", "weba"),
    "text": ("txt",),
    "video": ("mp4", "mov", "webm", "mkv"),
}
KIND_OF: Mapping[str, Kind] = {f".{suffix}": kind for kind, suffixes in SUFFIXES.items() for suffix in suffixes}
#: What a row tells of an answer.
ANSWER = (
    *("label", "probability", "probabilities", "valence", "arousal", "modalities", "attention"),
    *("label_set", "release", "digest", "trained", "windows"),
)


@dataclass(frozen=True)
class FolderItem:
    """files: of each kind, relative to the folder; more than one is an error of the item's."""

    name: str
    files: Mapping[Kind, Sequence[Path]]


@dataclass(frozen=True)
class FolderOptions:
    """concurrency: items that are asked for at a time; window_s, timeout_s: as `predict_long`'s."""

    concurrency: int = DEFAULT_CONCURRENCY
    window_s: float | None = None
    timeout_s: float | None = None

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise ValueError(f"concurrency: got {self.concurrency}; expected 1 or more")


@dataclass(frozen=True)
class FolderReport:
    """How many items there are; before: were answered by an earlier run; errors: items by `field.code` of InvalidInput,
    or by the kind of ServiceError; at_fault: whether all of those are InvalidInput."""

    items: int
    before: int
    answered: int
    errors: Mapping[str, int]
    at_fault: bool


def items_in(folder: Path) -> list[FolderItem]:
    """The items of a folder, by name. ValueError where it isn't one, OSError where a part can't be read."""
    if not folder.is_dir():
        raise ValueError(f"folder: got {folder}; expected a folder")
    found: dict[str, dict[Kind, list[Path]]] = {}
    for path in _files_beneath(folder):
        kind = KIND_OF.get(path.suffix.lower())
        if kind is not None:
            found.setdefault(_text(path.with_suffix("")), {}).setdefault(kind, []).append(path)
    return [FolderItem(name, found[name]) for name in sorted(found)]


def predict_folder(
    client: EmotionClient,
    folder: Path,
    output: Path,
    options: FolderOptions = FolderOptions(),
    progress: Progress = no_progress,
) -> FolderReport:
    """Answers what `output`, JSON Lines, has no answer to yet; a line an item, in the order of their names.

    Raises ServerUnavailable where nobody answers any more; what was answered until then stays.
    """
    items = items_in(folder)
    errors: Counter[str] = Counter()
    at_fault = True
    with open_journal(output) as journal:
        left = [item for item in items if item.name not in journal.answered]
        before = len(items) - len(left)
        for done, row in enumerate(
            _in_turn(lambda item: _row(client, folder, item, options), left, options), before + 1
        ):
            journal.append(row)
            if row["error"]:
                field, code = row["error"]["field"], row["error"]["code"]
                errors[f"{field}.{code}" if field else code] += 1
                at_fault = at_fault and field is not None
            progress(f"{100 * done // len(items)} % of {len(items)} items", done / len(items))
    return FolderReport(len(items), before, len(left) - errors.total(), dict(errors), at_fault)


def _files_beneath(folder: Path) -> Iterator[Path]:
    def failed(error: OSError) -> None:
        raise error

    for place, folders, names in os.walk(folder, onerror=failed):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place, name).relative_to(folder) for name in sorted(names) if not name.startswith("."))


def _in_turn(work: Callable[[FolderItem], Row], items: Sequence[FolderItem], options: FolderOptions) -> Iterator[Row]:
    """Results in the order of the items, of which only a few are under way."""
    waiting: deque[Future[Row]] = deque()
    pool = ThreadPoolExecutor(options.concurrency, thread_name_prefix="cmt-folder")
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > 2 * options.concurrency:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _row(client: EmotionClient, folder: Path, item: FolderItem, options: FolderOptions) -> Row:
    files: dict[str, Any] = {
        kind: " ".join(_text(path) for path in item.files.get(kind, ())) or None for kind in SUFFIXES
    }
    row = {"item": item.name, **files}
    try:
        told = _answer(client, _given(folder, item, client.limits.max_text_bytes), options).to_json()
        return {**row, **{name: told[name] for name in ANSWER}, "error": None}
    except EmotionError as error:
        if isinstance(error, ServerUnavailable) and not isinstance(error, Overloaded):
            raise
        field, code = (error.field, error.code) if isinstance(error, InvalidInput) else (None, type(error).__name__)
        message = error.message if isinstance(error, InvalidInput) else str(error)
        return {**row, **dict.fromkeys(ANSWER), "error": {"field": field, "code": code, "message": message}}


def _given(folder: Path, item: FolderItem, most_text_bytes: int) -> dict[str, Any]:
    for kind, paths in item.files.items():
        if len(paths) > 1:
            names = " and ".join(path.name for path in paths)
            raise InvalidInput(kind, "ambiguous", f"got {names} of one item; expected one {kind}")
    given: dict[str, Any] = {kind: folder / paths[0] for kind, paths in item.files.items()}
    if "video" in given and {"image", "audio"} & given.keys():
        told = "got a film and an image or a sound of one item; expected the film alone, or with text"
        raise InvalidInput("video", "ambiguous", told)
    if "text" in given:
        data = file_bytes(given["text"], "text", most_text_bytes, "a text file")
        try:
            given["text"] = data.decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise InvalidInput(
                "text", "not_utf8", f"got bytes that aren't UTF-8 ({error}); expected a UTF-8 file"
            ) from None
    return given


def _answer(client: EmotionClient, given: Mapping[str, Any], options: FolderOptions) -> LongEmotion:
    windowed: dict[str, Any] = {"window_s": options.window_s, "concurrency": 1, "timeout_s": options.timeout_s}
    if "video" in given:
        return client.predict_video(**given, **windowed)
    if "audio" in given:
        return client.predict_long(**given, **windowed)
    return LongEmotion(client.predict(**given, timeout_s=options.timeout_s))


def _text(path: Path) -> str:
    """A relative path as text that every file format takes, whatever bytes it has."""
    return path.as_posix().encode("utf-8", "backslashreplace").decode()
