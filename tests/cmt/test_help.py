"""`cmt --help`: verbs in groups, and an example in each verb's help that the parser takes."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest
from typer.testing import CliRunner

import cmt_client
from cmt_cli.main import PANELS, app
from command_lines import parse, verbs

VERBS = list(verbs())


@pytest.mark.long
@pytest.mark.parametrize(("names", "command"), VERBS, ids=[" ".join(names) for names, _ in VERBS])
def test_every_verb_helps_with_an_example_that_it_takes(names: tuple[str, ...], command: Any) -> None:
    examples = re.findall(r"^Example: \[bold\](.+)\[/\]$", command.help, re.MULTILINE)
    assert len(examples) == 1
    assert examples[0].startswith(f"cmt {' '.join(names)}")
    parse(examples[0])
    shown = CliRunner().invoke(app, [*names, "--help"], terminal_width=200)
    assert shown.exit_code == 0
    assert examples[0].split()[-1] in shown.output


@pytest.mark.parametrize(("names", "command"), VERBS, ids=[" ".join(names) for names, _ in VERBS])
def test_help_is_a_short_sentence_and_every_option_has_one(names: tuple[str, ...], command: Any) -> None:
    first = command.help.split("\n\n")[0]
    assert len(first) <= 100
    assert first.endswith(".")
    assert "\n" not in first
    assert all(getattr(parameter, "help", "") for parameter in command.params if parameter.name != "help")


def test_help_groups_the_verbs() -> None:
    shown = CliRunner().invoke(app, ["--help"]).output
    places = [shown.index(f"─ {panel} ─") for panel in ("Serve", "Model", "Operate", "Measure")]
    assert places == sorted(places)
    assert all(f"\n│ {verb.__name__.replace('_', '-')} " in shown for verbs_of in PANELS.values() for verb in verbs_of)


def test_the_version_has_one_source() -> None:
    assert CliRunner().invoke(app, ["--version"]).output.strip() == f"cmt-triton {cmt_client.__version__}"


def test_help_is_quick_to_load() -> None:
    code = "import sys, cmt_cli.main; print({'torch', 'openvino', 'tritonclient.grpc', 'numpy'} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "set()"


def test_a_line_that_cmt_would_refuse_is_refused() -> None:
    for line in ("cmt serve --sing", "cmt sing", "cmt plan --rate many --slo-ms 5", "cmt evaluate"):
        with pytest.raises(BaseException):  # noqa: B017, PT011  # of click, or what typer carries of it
            parse(line)
