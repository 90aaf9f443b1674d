"""Prepares the items of requests on a few threads, in the order in which they came, and holds no more than agreed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from cmt_pipeline.errors import InvalidInput, Overloaded
from cmt_pipeline.modality import MODALITIES, Modality
from cmt_pipeline.preprocess import Preprocessor, collate, everyday, face_notes
from cmt_pipeline.stages import FACE
from cmt_pipeline.tensors import Array
from cmt_server.isolation import PROCESSES

#: What became of an item or a request: its ready tensors, or why it gets none.
Outcome = dict[str, Array] | Exception

#: The files of a request's items, of each modality that it has.
Files = Mapping[Modality, Sequence[bytes]]


class PreparePool:
    """Decoders and resamplers work outside Python's lock, so that threads are enough. Files of formats that few people
    send wait on threads of their own: a decoder that hangs holds up no others.

    max_held_bytes: of all files that wait or are being prepared.
    """

    def __init__(self, preprocessors: Mapping[Modality, Preprocessor], max_held_bytes: int) -> None:
        self._preprocessors = preprocessors
        self._threads = ThreadPoolExecutor(len(MODALITIES), "preprocess")
        self._aside = ThreadPoolExecutor(PROCESSES, "preprocess-aside")
        self._most_bytes = max_held_bytes
        self._held_bytes = 0
        self._lock = threading.Lock()

    def room_for(self, files: Files) -> Overloaded | None:
        """Why a request can't be taken, if so. One alone always can."""
        size = _size(files)
        if not self._held_bytes or self._held_bytes + size <= self._most_bytes:
            return None
        return Overloaded(
            "memory",
            1.0,
            f"got {size} bytes beside {self._held_bytes} that are waiting to be prepared; expected at most "
            f"{self._most_bytes} together: try again later, or send smaller files",
        )

    def prepare(self, files: Files, late: Callable[[], Overloaded | None], done: Callable[[Outcome], None]) -> None:
        """Starts with a request; `done` gets its outcome on a thread of the pool. late: says whether nobody waits
        for it any more, asked just before its turn."""
        _Task(self, files, late, done).start()

    @property
    def idle(self) -> bool:
        return not self._held_bytes

    def close(self) -> None:
        """Finishes what was started."""
        self._threads.shutdown()
        self._aside.shutdown()

    def _threads_for(self, modality: Modality, data: bytes) -> ThreadPoolExecutor:
        return self._threads if everyday(modality, data) else self._aside

    def _hold(self, size: int) -> None:
        with self._lock:
            self._held_bytes += size


class _Task:
    """One request on its way through the pool."""

    def __init__(
        self,
        pool: PreparePool,
        files: Files,
        late: Callable[[], Overloaded | None],
        done: Callable[[Outcome], None],
    ) -> None:
        self._pool, self._files, self._late, self._done = pool, files, late, done
        self._outcomes: dict[tuple[Modality, int], Outcome] = {}
        self._lock = threading.Lock()
        self._left = sum(map(len, files.values()))
        self._size = _size(files)

    def start(self) -> None:
        self._pool._hold(self._size)
        for modality, files in self._files.items():
            for index, data in enumerate(files):
                self._pool._threads_for(modality, data).submit(self._prepare, modality, index, data)

    def _prepare(self, modality: Modality, index: int, data: bytes) -> None:
        outcome = self._late() or _prepared(self._pool._preprocessors[modality], data)
        with self._lock:
            self._outcomes[modality, index] = outcome
            self._left -= 1
            last = not self._left
        if last:
            self._pool._hold(-self._size)
            self._done(self._collected())

    def _collected(self) -> Outcome:
        """The ready tensors of all items, or the first refusal, which of several items names its own."""
        outputs: dict[str, Array] = {}
        for modality, files in self._files.items():
            items: list[dict[str, Array]] = []
            for index in range(len(files)):
                outcome = self._outcomes[modality, index]
                if isinstance(outcome, InvalidInput) and len(files) > 1:
                    which = f"item {index} of {len(files)}: "
                    return InvalidInput(outcome.field, outcome.code, which + outcome.message)
                if isinstance(outcome, Exception):
                    return outcome
                items.append(outcome)
            outputs |= collate(modality, items)
            if modality == "image":
                outputs[FACE.name] = face_notes(items)
        return outputs


def _prepared(prepare: Preprocessor, data: bytes) -> Outcome:
    try:
        return prepare(data)
    except InvalidInput as error:
        # Without its traceback, which would hold on to the request's memory until Python's cycle collector next runs.
        return InvalidInput(error.field, error.code, error.message)
    except Exception as error:
        return error


def _size(files: Files) -> int:
    return sum(len(data) for of in files.values() for data in of)
