"""gpu.html: what `make bench-gpu` found, for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cmt_training.html_page import Part, heading, page, paragraph, preformatted, table


def write_page(result: Mapping[str, Any]) -> str:
    """One self-contained page; sections that failed or were skipped say so."""
    gpu = result.get("conditions", {}).get("gpu", "no GPU")
    return page(f"bench-gpu: {gpu}", [heading(f"On {gpu}", 1), *_sections(result)])


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
        yield preformatted({key: value for key, value in found.items() if key not in ("rows", "load", *_lists(found))})
    yield heading("Conditions")
    yield preformatted({"seconds": result.get("seconds"), **result.get("conditions", {})})


def _lists(found: Mapping[str, Any]) -> list[str]:
    return [key for key, value in found.items() if isinstance(value, list)]


def _with_shares(rows: Sequence[Mapping[str, Any]], peaks: Mapping[str, float]) -> list[dict[str, Any]]:
    """With the share of the bf16 peak that the served path reaches."""
    peak = peaks.get("bf16_tflops")
    if not peak:
        return [dict(row) for row in rows]
    return [dict(row) | {"share of peak": f"{row['gflop'] / row['served_ms'] / peak:.1%}"} for row in rows]


def _rows(rows: Sequence[Mapping[str, Any]]) -> Part:
    head = list(dict.fromkeys(key for row in rows for key in row))
    return table(head, [[str(row.get(key, "")) for key in head] for row in rows])
