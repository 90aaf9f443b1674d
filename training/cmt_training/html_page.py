"""Self-contained HTML pages: tables, pictures and values, all escaped, in one file without scripts."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 } td, th { padding: .25rem .75rem; border-bottom: 1px solid #ddd }
td { text-align: right; font-variant-numeric: tabular-nums } td:first-child, th { text-align: left }
img { max-width: 100%; margin: .5rem } pre { background: #f6f6f6; padding: 1rem; overflow-x: auto; font-size: 13px }
"""


def page(title: str, body: Sequence[str]) -> str:
    """A whole page of parts that are HTML already."""
    lines = [
        '<!doctype html><html lang="en"><meta charset="utf-8">',
        f"<title>{html.escape(title)}</title><style>{STYLE}</style>",
        *body,
        "</html>",
    ]
    return "\n".join(lines) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table; everything is escaped."""
    cells = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{body}</table>"


def images(figures: Mapping[str, bytes]) -> list[str]:
    """PNGs by name, inside the page."""
    return [
        f'<img alt="{html.escape(name)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        for name, png in figures.items()
    ]


def preformatted(values: Mapping[str, Any]) -> str:
    return f"<pre>{html.escape(json.dumps(values, indent=1))}</pre>"
