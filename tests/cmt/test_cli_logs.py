"""`cmt --log-format json`: whatever is logged is a JSON line, errors too."""

from __future__ import annotations

import json
import sys

import pytest

from cmt_cli.main import main
from cmt_pipeline.logs import configure_logging


@pytest.mark.parametrize("by", ["option", "variable"])
def test_json_logs_hold_errors_too(
    by: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ["--log-format", "json"] if by == "option" else []
    if not chosen:
        monkeypatch.setenv("CMT_LOG_FORMAT", "json")
    monkeypatch.setattr(sys, "argv", ["cmt", *chosen, "predict", "--url", "grpc://127.0.0.1:1/path"])
    with pytest.raises(SystemExit) as ended:
        main()
    configure_logging()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    entry = json.loads(line)
    assert (entry["level"], entry["error"]) == ("error", "ValueError")
    assert "server URL: got 'grpc://127.0.0.1:1/path'" in entry["message"]
