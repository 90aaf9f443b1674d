"""The table of accepted files in docs/inputs.md, out of the corpus that tests decode.

PYTHONPATH=tests python -m media.matrix
"""

from __future__ import annotations

from pathlib import Path

from cmt_pipeline.modality import Modality
from cmt_pipeline.preprocess import everyday
from media.pictures import PICTURES
from media.sounds import SOUNDS

PAGE = Path(__file__).parents[2] / "docs" / "inputs.md"
BEGIN, END = "<!-- from the tests -->\n", "<!-- until here -->\n"


def page() -> str:
    """The page with its tables as the corpus has them."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{_pictures()}\n{_sounds()}\n{END}{after}"


def _pictures() -> str:
    rows = (
        (name, made.by, f"{made.error:g} of 255" if made.error else "exact", _where("image", made.make()))
        for name, made in PICTURES.items()
    )
    return _table(("picture", "made by", "mean difference of a value, at most", "decoded"), rows)


def _sounds() -> str:
    rows = (
        (
            name,
            made.by,
            f"like it to {made.alike:g}" if made.error is None else f"{made.error:.1g} of full scale",
            _where("audio", made.make()),
        )
        for name, made in SOUNDS.items()
    )
    return _table(("sound", "made by", "difference from what was put in, at most", "decoded"), rows)


def _where(modality: Modality, data: bytes) -> str:
    return "at once" if everyday(modality, data) else "apart"


def _table(head: tuple[str, ...], rows: object) -> str:
    lines = [head, ("---",) * len(head), *rows]  # type: ignore[misc]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


if __name__ == "__main__":
    PAGE.write_text(page())
