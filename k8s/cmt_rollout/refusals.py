"""Reads what a server's stages refused, by release and code, from its metrics."""

from __future__ import annotations

import re
import urllib.request

REFUSED = re.compile(r"^cmt_refusals_total\{([^}]*)\} ([0-9.e+]+)$", re.MULTILINE)
LABEL = re.compile(r'(\w+)="([^"]*)"')
TIMEOUT_S = 2.0
MAX_BYTES = 8 << 20


def refusals(server: str, metrics_url: str | None) -> dict[tuple[str, int, str], int] | None:
    """(server, release, code) -> requests; None where the metrics can't be had."""
    if metrics_url is None:
        return None
    try:
        with urllib.request.urlopen(metrics_url, timeout=TIMEOUT_S) as response:  # noqa: S310
            text = response.read(MAX_BYTES).decode(errors="replace")
    except (OSError, ValueError):
        return None
    return parsed(server, text)


def parsed(server: str, text: str) -> dict[tuple[str, int, str], int]:
    """The same of the metrics' text."""
    found: dict[tuple[str, int, str], int] = {}
    for labels, value in REFUSED.findall(text):
        named = dict(LABEL.findall(labels))
        if named.get("release", "").isdigit():
            key = (server, int(named["release"]), f"{named.get('field', '?')}.{named.get('code', '?')}")
            found[key] = found.get(key, 0) + int(float(value))
    return found
