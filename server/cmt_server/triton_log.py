"""tritonserver's log lines among our own."""

from __future__ import annotations

import logging
import re

LOG = logging.getLogger(__name__)
#: Level, time, process, source and message.
LINE = re.compile(r'([EWIV])\d{4} [\d:.]+ \d+ ([\w.]+:\d+)\] +"?(.*?)"?$')
LEVELS = {"E": logging.ERROR, "W": logging.WARNING, "I": logging.INFO, "V": logging.DEBUG}


def log_line(line: str) -> None:
    """Logs a line with the level that Triton gave it, and its place in Triton as `source`; others as information."""
    found = LINE.match(line)
    if found:
        LOG.log(LEVELS[found[1]], found[3], extra={"source": found[2]})
    elif line.strip():
        LOG.info(line)
