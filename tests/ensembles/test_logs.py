"""Logs: lines for people, JSON lines on request, levels, fields given as extra."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from cmt_pipeline.logs import StderrHandler, configure_logging, logs_are_json


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)
    for handler in [h for h in root.handlers if isinstance(h, StderrHandler)]:
        root.removeHandler(handler)


def logged(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_lines_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    logging.getLogger("cmt_server.server").info("ready after %d s", 3)
    (line,) = logged(capsys)
    assert line.endswith("INFO cmt_server.server: ready after 3 s")
    assert not logs_are_json()


def test_json_lines_carry_fields_and_tracebacks(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json")
    log = logging.getLogger("cmt_client.client")
    log.warning("two\nlines", extra={"request_id": "abc"})
    try:
        raise OSError("gone")
    except OSError:
        log.exception("failed")
    plain, failed = map(json.loads, logged(capsys))
    assert plain.pop("time").endswith("+00:00")
    assert plain == {"level": "warning", "logger": "cmt_client.client", "message": "two\nlines", "request_id": "abc"}
    assert "OSError: gone" in failed["traceback"]
    assert logs_are_json()


def test_levels_are_ours_and_others_warn(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(level="debug")
    logging.getLogger("cmt_client").debug("ours")
    logging.getLogger("somebody").info("theirs")
    logging.getLogger("somebody").warning("theirs matters")
    assert [line.rpartition(": ")[2] for line in logged(capsys)] == ["ours", "theirs matters"]
    configure_logging(level="error")
    logging.getLogger("cmt_client").warning("ours")
    assert logged(capsys) == []


def test_configuring_again_replaces(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json")
    configure_logging("text")
    logging.getLogger("cmt_client").info("once")
    assert len(logged(capsys)) == 1


@pytest.mark.parametrize("choice", [{"format_": "xml"}, {"level": "loud"}])
def test_unknown_choices_are_named(choice: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"got '(xml|loud)'; expected"):
        configure_logging(**choice)
