"""Decoding in processes of their own what few people send: HEIC, AVIF, TIFF, films and the like.

Their decoders are large, and meet hostile files less often than those of JPEG or WAV. A file on which one crashes,
hangs or takes too much memory is refused, and nobody else's request is lost with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import resource
import signal
import threading
from collections.abc import Mapping
from concurrent.futures import TimeoutError as TooSlow
from pathlib import Path
from typing import TYPE_CHECKING

from cmt_pipeline.errors import InvalidInput
from cmt_pipeline.limits import Limits
from cmt_pipeline.modality import Modality
from cmt_pipeline.preprocess import Preprocessor, everyday, open_preprocessors
from cmt_pipeline.tensors import Array
from cmt_server.child import PR_SET_PDEATHSIG

if TYPE_CHECKING:
    from pebble import ProcessPool

PROCESSES = 2  # started at the first file that needs one
TIMEOUT_S = 5.0  # for one file, of which decoding takes 1 s at most on an idle core
MEMORY_BYTES = 1 << 30  # beyond what the process has before its first file
STACK_BYTES = 8 << 20  # of their threads; the server's own, which they would inherit, take more than MEMORY_BYTES each

_preprocessors: dict[Modality, Preprocessor] = {}  # of a process that decodes


class Isolation:
    """The processes; `preprocessors` are to be used instead of those out of the folder of a `preprocess` version."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        self._settings = (folder, limits)
        self._pool: ProcessPool | None = None
        self._lock = threading.Lock()
        inner = open_preprocessors(folder, limits)
        self.preprocessors: Mapping[Modality, Preprocessor] = {m: self._around(m, inner[m]) for m in inner}

    def close(self) -> None:
        """Ends the processes, whatever they do."""
        with self._lock:
            if self._pool:
                self._pool.stop()  # type: ignore[no-untyped-call]
                self._pool.join()

    def _around(self, modality: Modality, inner: Preprocessor) -> Preprocessor:
        return lambda data: inner(data) if everyday(modality, data) else self._isolated(modality, data)

    def _isolated(self, modality: Modality, data: bytes) -> dict[str, Array]:
        from pebble import ProcessExpired

        task = self._processes().schedule(_prepare, (modality, data), timeout=TIMEOUT_S)
        try:
            tensors: dict[str, Array] = task.result()
        except TooSlow:
            what = f"takes more than {TIMEOUT_S:g} s to decode"
        except MemoryError:
            what = f"takes more than {MEMORY_BYTES >> 20} MiB to decode"
        except ProcessExpired:
            what = "its decoder crashed on"
        else:
            return tensors
        raise InvalidInput(
            modality, "not_decodable", f"got a file of {len(data)} bytes that {what}; expected another: save it anew"
        )

    def _processes(self) -> ProcessPool:
        from pebble import ProcessPool

        with self._lock:
            if self._pool is None:
                resource.setrlimit(resource.RLIMIT_STACK, (STACK_BYTES, resource.getrlimit(resource.RLIMIT_STACK)[1]))
                spawned = multiprocessing.get_context("spawn")  # this process has threads
                self._pool = ProcessPool(PROCESSES, initializer=_begin, initargs=self._settings, context=spawned)
            return self._pool


def _begin(folder: Path, limits: Limits) -> None:
    """In a process that decodes: it ends with the one that started it, and takes no more memory than it may."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    _preprocessors.update(open_preprocessors(folder, limits))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY_BYTES
    with contextlib.suppress(ValueError):  # there is a lower limit already
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _prepare(modality: Modality, data: bytes) -> dict[str, Array]:
    return _preprocessors[modality](data)
