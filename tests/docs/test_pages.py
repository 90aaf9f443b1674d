"""The pages say what the code says: links, anchors, errors, limits, labels, figures; and the site builds offline."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from cmt_client.errors import TENSOR_FAULTS
from cmt_client.folder import SUFFIXES
from cmt_perf.headline import headline_table
from cmt_pipeline.labels import LABEL_SETS
from cmt_pipeline.limits import DEFAULT_LIMITS, MAX_BATCH_SIZE
from doc_blocks import PAGES, ROOT
from media import matrix

LINK = re.compile(r"\]\(([^)\s]+)\)")
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()


def anchors_of(page: Path) -> set[str]:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text()):
        if link.startswith("http"):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors_of(target), link


def test_the_readme_is_short_and_shows_what_is_measured() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 90
    assert headline_table(ROOT) in readme, "python -m cmt_perf.headline"


def codes_in_source() -> set[str]:
    """Every code that an InvalidInput is made with, where the code stands there as text."""
    found = {code for _, code in TENSOR_FAULTS}
    for folder in ("ensembles", "client", "server", "sessions"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if (
                    isinstance(node, ast.Call)
                    and ast.unparse(node.func).endswith("InvalidInput")
                    and len(node.args) > 2
                ):
                    code = node.args[1]
                    options = [code.body, code.orelse] if isinstance(code, ast.IfExp) else [code]
                    found |= {str(o.value) for o in options if isinstance(o, ast.Constant)}
    return found


def test_every_code_of_invalid_input_is_explained() -> None:
    table = OPERATIONS.split("### Codes of InvalidInput")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`[a-z_0-9`, ]+) \|", table, re.MULTILINE)
    assert {code for row in rows for code in re.findall(r"`(\w+)`", row)} == codes_in_source()


def test_limits_are_those_of_the_code() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ([\d.]+) \|$", OPERATIONS.split("<!-- limits -->")[1], re.MULTILINE))
    assert rows == {name: str(value) for name, value in asdict(DEFAULT_LIMITS).items()}
    assert f"at most {MAX_BATCH_SIZE} items" in OPERATIONS


def test_suffixes_of_a_folder_are_those_of_the_code() -> None:
    page = " ".join((ROOT / "docs" / "clients.md").read_text().split())
    told = "; ".join(", ".join(f"`{suffix}`" for suffix in suffixes) for suffixes in SUFFIXES.values())
    assert f"Suffixes are {told}" in page.replace(" (UTF-8)", "")


def test_label_sets_are_those_of_the_code() -> None:
    page = (ROOT / "docs" / "own-model.md").read_text()
    for labels in LABEL_SETS.values():
        assert f"| {', '.join(labels)} |" in page


@pytest.mark.long
def test_the_site_builds_and_fetches_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert built.returncode == 0, built.stdout + built.stderr
    pages = list(tmp_path.glob("*.html"))
    assert {path.stem for path in (ROOT / "docs").glob("*.md")} <= {page.stem for page in pages}
    for page in pages:
        text = page.read_text()
        assert not re.search(r'<(script|img|iframe)[^>]+src="(https?:)?//', text), page.name
        assert not re.search(r'<link[^>]+rel="(stylesheet|preconnect|preload)"[^>]+href="(https?:)?//', text), page.name
    assert (tmp_path / "perf" / "results" / "bench.html").is_file()


def test_the_table_of_accepted_files_is_that_of_the_corpus() -> None:
    assert matrix.page() == matrix.PAGE.read_text(), "PYTHONPATH=tests python -m media.matrix writes it"
