"""Logs of all packages: the standard `logging`, under the modules' own names, as lines for people or as JSON lines.

What a caller sends (pixels, samples, words) is never logged: a message names a request by its id, and an error by its
kind and place.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime, timezone
from typing import Any, Literal, get_args

LogFormat = Literal["text", "json"]
LEVELS = ("debug", "info", "warning", "error")
DEFAULT_LEVEL = "info"

OURS = "cmt_"
TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
#: Whatever a record has beyond these was given as `extra`.
STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, what was given as `extra`, and the traceback, if any."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= {key: value for key, value in vars(record).items() if key not in STANDARD}
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


class StderrHandler(logging.Handler):
    """A line to standard error, whatever that is at the moment."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


def configure_logging(format_: str = "text", level: str = DEFAULT_LEVEL) -> None:
    """Our logs from `level` on, and others' warnings, go to standard error. ValueError for an unknown choice."""
    if format_ not in get_args(LogFormat):
        raise ValueError(f"log format: got {format_!r}; expected {' or '.join(get_args(LogFormat))}")
    if level not in LEVELS:
        raise ValueError(f"log level: got {level!r}; expected one of {', '.join(LEVELS)}")
    handler = StderrHandler()
    handler.setFormatter(JsonFormatter() if format_ == "json" else logging.Formatter(TEXT))
    handler.addFilter(lambda record: record.name.startswith(OURS) or record.levelno >= logging.WARNING)
    root = logging.getLogger()
    for earlier in [h for h in root.handlers if isinstance(h, StderrHandler)]:
        root.removeHandler(earlier)
    root.addHandler(handler)
    root.setLevel(level.upper())


def logs_are_json() -> bool:
    """Whether JSON lines were chosen, so that nothing else may stand between them."""
    return any(isinstance(handler.formatter, JsonFormatter) for handler in logging.getLogger().handlers)
