"""What a command names as its data -> one data set: a folder, a table, or several to pair by label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cmt_pipeline.modality import MODALITIES, Modality
from cmt_training.data.folder import open_data_set
from cmt_training.data.pairing import paired
from cmt_training.examples import DataError, DataSet


@dataclass(frozen=True)
class DataChoice:
    """data: a folder or a table; root: where the table's files lie; pairs: `MODALITY=DATA`, instead of data."""

    data: Path | None = None
    root: Path | None = None
    pairs: tuple[str, ...] = ()

    def open(self, label_set: str | None = None) -> DataSet:
        """Raises DataError for no choice, or more than one, and for data that can't be used."""
        if (self.data is None) == (not self.pairs):
            raise DataError("expected either DATA, or --pair MODALITY=DATA two or three times")
        if self.data is not None:
            return open_data_set(self.data, label_set=label_set, root=self.root)
        if self.root is not None:
            raise DataError("got --root beside --pair; expected tables whose files lie beside them")
        return paired({m: open_data_set(path) for m, path in _parts(self.pairs).items()}, label_set)


def _parts(pairs: Sequence[str]) -> dict[Modality, Path]:
    parts: dict[Modality, Path] = {}
    for pair in pairs:
        name, separator, path = pair.partition("=")
        known = next((m for m in MODALITIES if m == name), None)
        if known is None or not separator or not path or known in parts:
            raise DataError(
                f"--pair: got {pair!r}; expected one of each of {', '.join(MODALITIES)} at most, as image=DATA"
            )
        parts[known] = Path(path)
    return {m: parts[m] for m in MODALITIES if m in parts}
