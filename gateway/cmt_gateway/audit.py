"""Who asked for what and what became of it, a JSON object a line, without anything that a person said or showed."""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path
from typing import Any


class Audit:
    """Appends to a file that only its owner may read; a reader or a rotation by renaming may come at any time."""

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file = file

    def write(self, **entry: Any) -> None:
        line = json.dumps({"time": datetime.datetime.now(datetime.timezone.utc).isoformat(), **entry}) + "\n"
        descriptor = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, line.encode())  # one call: lines of several processes don't mix
        finally:
            os.close(descriptor)
