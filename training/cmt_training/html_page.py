"""Self-contained HTML pages: parts in order, every value escaped by the template, one file without scripts."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

TEMPLATE = """\
<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<title>{{ title }}</title><style>
:root { color-scheme: light dark; --text: #222; --page: #fff; --line: #ddd; --shade: #f6f6f6 }
@media (prefers-color-scheme: dark) { :root { --text: #ddd; --page: #1b1d20; --line: #444; --shade: #26292d } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
body { color: var(--text); background: var(--page); overflow-wrap: anywhere }
.wide { overflow-x: auto; margin: 1rem 0 }
table { border-collapse: collapse; font-size: 14px }
td, th { padding: .25rem .6rem; border-bottom: 1px solid var(--line) }
td, th { text-align: right; overflow-wrap: normal }
td:not(:first-child) { font-variant-numeric: tabular-nums; white-space: nowrap }
td:first-child, th:first-child { text-align: left; min-width: 7rem; position: sticky; left: 0; background: var(--page) }
img { display: block; width: 100%; max-width: 44rem; margin: 1rem 0; background: #fff }
pre { background: var(--shade); padding: 1rem; white-space: pre-wrap; font-size: 13px }
</style>
{% for part in parts %}
{% if part.kind == "table" %}
<div class="wide" tabindex="0"><table><tr>{% for name in part.head %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in part.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
{% elif part.kind == "image" %}
<img alt="{{ part.name }}" src="data:image/png;base64,{{ part.png }}">
{% else %}
<{{ part.kind }}>{{ part.text }}</{{ part.kind }}>
{% endif %}
{% endfor %}
</html>
"""

Part = Mapping[str, Any]


def page(title: str, parts: Sequence[Part]) -> str:
    """A whole page of what the functions below make."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    return environment.from_string(TEMPLATE).render(title=title, parts=parts)


def heading(text: str, level: int = 2) -> Part:
    return {"kind": f"h{level}", "text": text}


def paragraph(text: str) -> Part:
    return {"kind": "p", "text": text}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Part:
    return {"kind": "table", "head": head, "rows": rows}


def images(figures: Mapping[str, bytes]) -> list[Part]:
    """PNGs by name, inside the page."""
    return [{"kind": "image", "name": name, "png": base64.b64encode(png).decode()} for name, png in figures.items()]


def preformatted(values: Mapping[str, Any]) -> Part:
    return {"kind": "pre", "text": json.dumps(values, indent=1)}
