"""Decoders that fail for good, for a process that decodes to meet."""

from __future__ import annotations

import os
import signal
from typing import Any


def crashes(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def hangs(*_: Any) -> None:
    while True:
        pass


def takes_all_memory(*_: Any) -> None:
    bytearray(4 << 30)
