"""Sessions as files: observations as JSON Lines, or what `cmt predict --json` says of a long sound or a film."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cmt_session.errors import InvalidEvent
from cmt_session.fields import object_of
from cmt_session.observation import MAX_BYTES, Observation

MAX_PREDICTED_BYTES = 16_777_216
#: What a window of a prediction says for itself; the rest is said once, for the whole.
OF_WINDOW = ("start_s", "end_s", "probabilities", "valence", "arousal")
OF_WHOLE = ("modalities", "digest", "trained")


def read_session(path: Path) -> list[Observation]:
    """The observations, in the order of the file. Raises InvalidEvent, which names the line; OSError."""
    if path.suffix == ".json":
        with path.open("rb") as file:
            return _predicted(file.read(MAX_PREDICTED_BYTES + 1), str(path))
    found = []
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_BYTES + 2), b""), 1):
            if line.strip():
                found.append(_observation(line, f"{path}, line {number}"))
    if not found:
        raise InvalidEvent(f"{path}: got no observation; expected one a line, as JSON")
    return found


def write_session(events: Iterable[Observation], path: Path) -> None:
    """What `read_session` reads."""
    path.write_text("".join(f"{json.dumps(seen.to_json())}\n" for seen in events))


def _observation(line: bytes, where: str) -> Observation:
    try:
        return Observation.from_json(line)
    except InvalidEvent as error:
        raise InvalidEvent(f"{where}: {error}") from None


def _predicted(text: bytes, where: str) -> list[Observation]:
    try:
        whole = object_of(text, MAX_PREDICTED_BYTES, InvalidEvent)
        windows: Any = whole.get("windows")
        if not isinstance(windows, list) or not windows or not all(isinstance(window, dict) for window in windows):
            raise InvalidEvent(
                "got an answer without windows; expected that to a film, or to a sound of several windows"
            )
        common = {name: whole[name] for name in OF_WHOLE if name in whole}
        return [
            Observation.from_json({**common, **{n: w[n] for n in OF_WINDOW if n in w}}, f"windows.{place}")
            for place, w in enumerate(windows)
        ]
    except InvalidEvent as error:
        raise InvalidEvent(f"{where}: {error}") from None
