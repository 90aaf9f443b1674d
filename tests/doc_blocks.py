"""The fenced blocks of the README and of docs/, and what their languages promise.

sh        runs as it stands, against the session's server
python    runs as it stands, in this process; with title="pip install NAME", in that package's own environment
js, go    run as they stand, where node and go are on the machine
py, toml  files of docs/extending.md, which tests/test_extending.py lays out and uses
console   isn't run: it takes minutes, blocks, or needs a cluster or a GPU; its commands are put to their parsers
yaml      parses
"""

from __future__ import annotations

import itertools
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import command_lines

ROOT = Path(__file__).parents[1]
PAGES = (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), ROOT / "k8s" / "README.md")
LANGUAGES = {"sh", "python", "py", "js", "javascript", "go", "toml", "console", "yaml"}  # javascript: a browser's
FENCE = re.compile(r'^```([^\n` ]*)(?: title="pip install ([\w-]+)")?[^\n`]*\n(.*?)^```', re.DOTALL | re.MULTILINE)
#: Commands of others, in console blocks, that nothing here can check.
OTHERS = {"kind", "minikube", "git", "kubectl", "docker"}
TARGETS = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
EXTRAS = set(re.findall(r"^([a-z][\w-]*) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))


@dataclass(frozen=True)
class Block:
    """needs: a package that its reader has to install; "" for none."""

    page: Path
    language: str
    needs: str
    text: str

    @property
    def lines(self) -> list[str]:
        """Commands, one an entry, without comments."""
        joined = self.text.replace("\\\n", " ").splitlines()
        return [line.split("  #")[0].strip() for line in joined if line.split("  #")[0].strip()]

    def __str__(self) -> str:
        return f"{self.page.name}: {self.text.strip().splitlines()[0][:60]}"


def blocks(language: str | None = None) -> list[Block]:
    found = [Block(page, name, needs, text) for page in PAGES for name, needs, text in FENCE.findall(page.read_text())]
    return [block for block in found if language in (None, block.language)]


def check(line: str) -> None:
    """AssertionError, or the parser's own error, for a command that names what isn't there."""
    words = shlex.split(line.removesuffix("&"), comments=True)
    if "cmt_cli.main" in words:  # under torchrun
        words = ["cmt", *words[words.index("cmt_cli.main") + 1 :]]
    first, rest = words[0], words[1:]
    if first == "cmt":
        command_lines.parse(shlex.join(words))
    elif first == "make":
        assert {word for word in rest if not re.fullmatch(r"[A-Z]+=\S+", word)} <= TARGETS, line
    elif first == "pip":
        named = re.findall(r"\[([\w,-]+)\]", line)
        assert rest[0] == "install", line
        assert {extra for names in named for extra in names.split(",")} <= EXTRAS, line
    else:
        assert first in OTHERS | {"locust"}, line
    for option in ("-k", "-f", "--file", "--config"):
        for name in [after for before, after in itertools.pairwise(words) if before == option]:
            assert (ROOT / name).exists(), f"{name} isn't there: {line}"
