"""The rooms of the house: what each package may import, what it does import, and how that is drawn.

`make house` writes docs/images/house.svg and the table in docs/design.md; tests/test_architecture.py holds both to the
code. The site's table has the lines of each room too, counted when it is built.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[2]
DRAWING = ROOT / "docs" / "images" / "house.svg"
PAGE = ROOT / "docs" / "design.md"
START, END = "<!-- rooms -->\n", "<!-- end of rooms -->\n"

#: Packages from the top floor down -> the packages of this repository that each may import.
MAY_IMPORT = {
    "cmt_cli": {
        "cmt_gateway",
        "cmt_rollout",
        "cmt_perf",
        "cmt_training",
        "cmt_client",
        "cmt_server",
        "cmt_export",
        "cmt_release",
        "cmt_engine",
        "cmt_session",
        "cmt_pipeline",
    },
    "cmt_gateway": {"cmt_client", "cmt_session", "cmt_pipeline"},  # whatever serves is behind the network
    "cmt_rollout": {"cmt_client", "cmt_server", "cmt_export", "cmt_release", "cmt_engine", "cmt_pipeline"},
    "cmt_perf": {
        "cmt_training",
        "cmt_client",
        "cmt_server",
        "cmt_export",
        "cmt_release",
        "cmt_engine",
        "cmt_session",
        "cmt_pipeline",
    },
    "cmt_training": {"cmt_export", "cmt_release", "cmt_engine", "cmt_pipeline"},
    "cmt_server": {"cmt_client", "cmt_release", "cmt_engine", "cmt_pipeline"},  # what serves needs no export
    "cmt_export": {"cmt_release", "cmt_engine", "cmt_pipeline"},
    "cmt_release": {"cmt_engine", "cmt_pipeline"},
    "cmt_client": {"cmt_session", "cmt_pipeline"},  # it is installed without what a server or an export needs
    "cmt_engine": {"cmt_pipeline"},
    "cmt_session": {"cmt_pipeline"},  # decides for others' answers: it needs neither a client nor a server
    "cmt_pipeline": set[str](),
}
FOLDERS = {
    "cmt_cli": "cmt",
    "cmt_gateway": "gateway",
    "cmt_rollout": "k8s",
    "cmt_perf": "perf",
    "cmt_training": "training",
    "cmt_client": "client",
    "cmt_server": "server",
    "cmt_export": "export",
    "cmt_release": "releases",
    "cmt_engine": "engines",
    "cmt_session": "sessions",
    "cmt_pipeline": "ensembles",
}

#: Where each room stands in the drawing, from left to right, so that no arrow runs behind a room.
COLUMNS = {
    "cmt_cli": 1.5,
    "cmt_gateway": 0.3,
    "cmt_rollout": 1.1,
    "cmt_perf": 2.2,
    "cmt_training": 3.0,
    "cmt_client": 0.62,
    "cmt_server": 0.9,
    "cmt_export": 2.4,
    "cmt_release": 1.6,
    "cmt_engine": 1.6,
    "cmt_session": 0.0,
    "cmt_pipeline": 0.8,
}
COLUMN_WIDTH, FLOOR_HEIGHT, BOX_WIDTH, BOX_HEIGHT, MARGIN = 190, 80, 140, 46, 16  # px


def folder_of(package: str) -> Path:
    return ROOT / FOLDERS[package] / package


def modules_of(package: str) -> list[Path]:
    return sorted(folder_of(package).rglob("*.py"))


def names_imported(path: Path) -> Iterator[str]:
    """Top-level names of all that a module imports, at its head or later."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield str(node.module).split(".")[0]


@functools.cache
def imports_of(package: str) -> frozenset[str]:
    """The other packages of this repository that it imports."""
    named = {name for path in modules_of(package) for name in names_imported(path)}
    return frozenset(named & MAY_IMPORT.keys()) - {package}


def lines_of(package: str) -> int:
    return sum(len(path.read_text().splitlines()) for path in modules_of(package))


def purpose_of(package: str) -> str:
    """The first paragraph of its docstring."""
    told = ast.get_docstring(ast.parse((folder_of(package) / "__init__.py").read_text())) or ""
    return " ".join(told.split("\n\n")[0].split())


def row_of(package: str) -> str:
    below = ", ".join(f"`{FOLDERS[name]}`" for name in MAY_IMPORT if name in MAY_IMPORT[package]) or "nothing"
    return f"| `{FOLDERS[package]}/{package}` | {purpose_of(package)} | {below} |"


def table() -> str:
    """Markdown: room, what it is, what it may import."""
    return "| room | what it is | may import |\n| --- | --- | --- |\n" + "".join(
        f"{row_of(name)}\n" for name in MAY_IMPORT
    )


def table_with_lines() -> str:
    rows = "".join(f"{row_of(name)} {lines_of(name):,} |\n" for name in MAY_IMPORT)
    total = f"| together | | | {sum(map(lines_of, MAY_IMPORT)):,} |\n"
    return "| room | what it is | may import | lines |\n| --- | --- | --- | ---: |\n" + rows + total


def floors(imports: Mapping[str, frozenset[str]]) -> dict[str, int]:
    """Each room's floor, counted from the top: below every room that imports it."""

    @functools.cache
    def floor(package: str) -> int:
        return 1 + max((floor(upper) for upper, below in imports.items() if package in below), default=-1)

    return {name: floor(name) for name in imports}


def arrows(imports: Mapping[str, frozenset[str]]) -> list[tuple[str, str]]:
    """The imports that no longer way implies."""

    @functools.cache
    def reached(package: str) -> frozenset[str]:
        return imports[package].union(*map(reached, imports[package]))

    return [
        (upper, lower)
        for upper, below in imports.items()
        for lower in sorted(below)
        if not any(lower in reached(other) for other in below - {lower})
    ]


def drawing() -> str:
    """SVG: a box for each room, an arrow for each import that no longer way implies."""
    imports = {name: imports_of(name) for name in MAY_IMPORT}
    levels = floors(imports)
    places = {
        name: (
            round(MARGIN + BOX_WIDTH / 2 + COLUMNS[name] * COLUMN_WIDTH),
            MARGIN + BOX_HEIGHT // 2 + levels[name] * FLOOR_HEIGHT,
        )
        for name in MAY_IMPORT
    }
    width = max(x for x, _ in places.values()) + BOX_WIDTH // 2 + MARGIN
    height = max(y for _, y in places.values()) + BOX_HEIGHT // 2 + MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'text-anchor="middle">',
        "<title>The rooms of this repository and what each imports</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#7d8590"/></marker></defs>',
        *(_arrow(places[upper], places[lower]) for upper, lower in arrows(imports)),
        *(_box(name, *places[name]) for name in MAY_IMPORT),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _arrow(start: tuple[int, int], end: tuple[int, int]) -> str:
    half = BOX_HEIGHT // 2
    return (
        f'<line x1="{start[0]}" y1="{start[1] + half}" x2="{end[0]}" y2="{end[1] - half}" stroke="#7d8590" '
        'stroke-width="1.5" marker-end="url(#tip)"/>'
    )


def _box(package: str, x: int, y: int) -> str:
    left, top = x - BOX_WIDTH // 2, y - BOX_HEIGHT // 2
    return (
        f'<g><rect x="{left}" y="{top}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6" fill="#eef3fb" '
        f'stroke="#3b6ea5"/><text x="{x}" y="{y - 3}" font-size="15" font-weight="bold" fill="#1f2328">'
        f'{escape(FOLDERS[package])}/</text><text x="{x}" y="{y + 15}" font-size="12" fill="#57606a">'
        f"{escape(package)}</text></g>"
    )


def main() -> None:
    """Writes the drawing and the table."""
    DRAWING.write_text(drawing())
    before, rest = PAGE.read_text().split(START)
    PAGE.write_text(before + START + table() + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
