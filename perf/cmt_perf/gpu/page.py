"""gpu.html: what `make bench-gpu` found, for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cmt_training.html_page import Part, heading, page, paragraph, preformatted, table


def write_page(result: Mapping[str, Any]) -> str:
    """One self-contained page; sections that failed or were skipped say so."""
    known = result.get("conditions", {})
    where = known.get("gpu") or f"no GPU, {known.get('cores')} cores of {known.get('cpu')}"
    return page(f"bench-gpu: {where}", [heading(f"On {where}", 1), *_sections(result)])


def _sections(result: Mapping[str, Any]) -> Iterator[Part]:
    for name, found in result.items():
        if name in ("conditions", "seconds"):
            continue
        yield heading(name.replace("_", " "))
        if why := found.get("failed") or found.get("skipped"):
            yield paragraph(f"Nothing: {why}")
            continue
        if name == "parity":
            for precision, rows in found.items():
                if isinstance(rows, list):
                    yield paragraph(precision)
                    yield _rows([{key: row[key] for key in ("what", "cases", "error", "tolerance")} for row in rows])
        elif "rows" in found:
            yield _rows(_with_shares(found["rows"], result.get("peaks", {})))
        yield from (_rows(rows) for key, rows in found.items() if key == "load")
        yield table(["", ""], _flat({key: value for key, value in found.items() if not isinstance(value, list)}))
    yield heading("Conditions")
    yield preformatted({"seconds": result.get("seconds"), **result.get("conditions", {})})


def _flat(values: Mapping[str, Any], before: str = "") -> list[list[str]]:
    """Names and figures, those within others named after them."""
    rows = []
    for key, value in values.items():
        name = f"{before}{key}".replace("_", " ")
        rows += _flat(value, f"{name}: ") if isinstance(value, Mapping) else [[name, _cell(value)]]
    return rows


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _with_shares(rows: Sequence[Mapping[str, Any]], peaks: Mapping[str, float]) -> list[dict[str, Any]]:
    """With the share of the bf16 peak that the served path reaches."""
    peak = peaks.get("bf16_tflops")
    if not peak:
        return [dict(row) for row in rows]
    return [dict(row) | {"share of peak": f"{row['gflop'] / row['served_ms'] / peak:.1%}"} for row in rows]


def _rows(rows: Sequence[Mapping[str, Any]]) -> Part:
    head = list(dict.fromkeys(key for row in rows for key in row))
    return table(head, [[_cell(row.get(key, "")) for key in head] for row in rows])
