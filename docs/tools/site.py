"""mkdocs hook: results, which pages link to as ../perf/results/…, join the site; the table of rooms gets its lines."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))
import rooms

ROOT = Path(__file__).parents[2]
RESULTS = ("perf/results", "training/results")
SHOWN = {".html", ".json", ".png", ".md"}


def on_files(files: Files, *, config: Any) -> Files:
    """Adds every result that can be shown; a Markdown one becomes a page."""
    for folder in RESULTS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in SHOWN:
                name = path.relative_to(ROOT).as_posix()
                files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Links and tables of the repository, as they are on the site."""
    if page.file.src_uri.startswith(RESULTS):
        return markdown
    markdown = markdown.replace(rooms.START + rooms.table(), rooms.table_with_lines())
    return markdown.replace("](../perf/results/", "](perf/results/").replace(
        "](../training/results/", "](training/results/"
    )
