"""A journal's rows as a Parquet file. Needs pyarrow."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from cmt_client.journal import Row, rows_of

ROWS_AT_A_TIME = 1_000


def check_pyarrow() -> None:
    """ValueError where it isn't installed: before hours of work, not after."""
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"Parquet needs pyarrow ({error}): pip install 'cmt-triton[parquet]', or write .jsonl"
        ) from None


def parquet_from_journal(journal: Path, output: Path) -> None:
    """Writes all rows, sorted as they are, in place of what was there."""
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    schema = _schema()
    draft = output.with_name(f".{output.name}.draft")
    rows = rows_of(journal)
    with ParquetWriter(draft, schema) as writer:
        while part := list(islice(rows, ROWS_AT_A_TIME)):
            writer.write_table(pyarrow.Table.from_pylist([_with_maps(row) for row in part], schema))
    draft.replace(output)


def _schema() -> Any:
    import pyarrow as pa

    shares = pa.map_(pa.string(), pa.float64())
    figures = {
        "label": pa.string(),
        "probability": pa.float64(),
        "probabilities": shares,
        "valence": pa.float64(),
        "arousal": pa.float64(),
    }
    window = pa.struct({"start_s": pa.float64(), "end_s": pa.float64(), **figures})
    return pa.schema(
        {
            **dict.fromkeys(("item", "image", "audio", "text", "video"), pa.string()),
            **figures,
            "modalities": pa.list_(pa.string()),
            "attention": shares,
            "label_set": pa.string(),
            "release": pa.int64(),
            "digest": pa.string(),
            "trained": pa.bool_(),
            "windows": pa.list_(window),
            "error": pa.struct(dict.fromkeys(("field", "code", "message"), pa.string())),
        }
    )


def _with_maps(row: Row) -> dict[str, Any]:
    """Dictionaries whose keys are data, as the pairs that pyarrow takes for a map."""
    found = {**row, **{name: _pairs(row[name]) for name in ("probabilities", "attention")}}
    windows = ({**w, "probabilities": _pairs(w["probabilities"])} for w in row["windows"] or ())
    return {**found, "windows": list(windows)}


def _pairs(values: Mapping[str, float] | None) -> list[tuple[str, float]] | None:
    return None if values is None else list(values.items())
