"""Command lines of `cmt`, as docs and help show them, put to the real command's parser without being run."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

import typer

from cmt_cli.main import app


def root() -> Any:
    """The `cmt` command as its parser sees it."""
    return typer.main.get_command(app)


def verbs(group: Any = None, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every verb with its names: ("serve",), ("release", "push"), …"""
    for name, command in (group or root()).commands.items():
        if hasattr(command, "commands"):
            yield from verbs(command, (*prefix, name))
        else:
            yield (*prefix, name), command


def parse(line: str) -> None:
    """Raises the parser's own error for a line with an unknown verb or option, or a value of another kind."""
    words = shlex.split(line, comments=True)
    assert words[0] == "cmt", line
    command, words = root(), words[1:]
    while hasattr(command, "commands") and words not in (["--help"], ["--version"]):
        context = command.make_context("cmt", [], resilient_parsing=True)
        _, words, _ = command.make_parser(context).parse_args(words)  # what isn't the group's own option
        assert words, f"expected a verb: {line}"
        assert words[0] in command.commands, f"cmt has no verb {words[0]}: {line}"
        command, words = command.commands[words[0]], words[1:]
    if words not in (["--help"], ["--version"]):
        command.make_context("cmt", words)
