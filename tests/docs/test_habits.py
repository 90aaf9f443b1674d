"""What tools around the repository say is there: workflow, hooks, changelog, types."""

from __future__ import annotations

import re

import pytest
import yaml

from cmt_pipeline import __version__
from doc_blocks import EXTRAS, ROOT, TARGETS, check
from rooms import MAY_IMPORT, folder_of

WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
PYPROJECT = (ROOT / "pyproject.toml").read_text()
RUNS = [step["run"] for job in WORKFLOW["jobs"].values() for step in job["steps"] if "run" in step]


def test_the_workflow_runs_what_is_there() -> None:
    assert {"make check", "make docs", "make test"} <= set(RUNS)
    for run in RUNS:
        if run.startswith(("make", "cmt", "pip")):
            check(run)
        for folder in re.findall(r"\btests/\S+", run):
            assert (ROOT / folder).exists(), run


def test_the_workflow_covers_the_pythons_that_are_claimed() -> None:
    claimed = set(re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PYPROJECT))
    ran = {
        version
        for job in WORKFLOW["jobs"].values()
        for version in job.get("strategy", {}).get("matrix", {}).get("python", ())
    }
    assert ran == claimed


def test_hooks_are_the_checks_of_make() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    makefile = (ROOT / "Makefile").read_text().split("\ncheck:")[1].split("\n\n")[0]
    assert [hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in hooks] == re.findall(
        r"\$\(BIN\)/(\w+)", makefile
    )


def test_the_changelog_has_this_version_and_what_comes() -> None:
    heads = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heads[0] == "Unreleased"
    assert heads[1].split()[0] == __version__


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_tell_their_types(package: str) -> None:
    assert (folder_of(package) / "py.typed").is_file()
    assert '"*" = ["py.typed"]' in PYPROJECT


def test_pages_name_extras_and_targets() -> None:
    assert {"serve", "export", "train", "docs", "dev"} <= EXTRAS
    assert {"demo", "test", "check", "docs"} <= TARGETS
