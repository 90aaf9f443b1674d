"""`cmt policy`: checks, and simulates recorded sessions."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import cmt_cli
from cmt_cli.main import app
from cmt_session import InvalidEvent, InvalidPolicy, Observation, shipped_policies, shipped_policy
from cmt_session.policy_file import SHIPPED
from cmt_session.session_file import read_session, write_session
from session_events import of

SAMPLES = Path(cmt_cli.__file__).parent / "samples"
CALL, LESSON = str(SAMPLES / "call.jsonl"), str(SAMPLES / "lesson.jsonl")


def run(*words: str) -> Result:
    return CliRunner().invoke(app, ["policy", *words], env={"COLUMNS": "200"})


@pytest.mark.parametrize("name", shipped_policies())
def test_check_takes_what_is_shipped_by_name_and_by_file(name: str) -> None:
    by_name, by_file = run("check", name), run("check", str(SHIPPED / f"{name}.yaml"), "--json")
    assert by_name.exit_code == by_file.exit_code == 0
    assert shipped_policy(name).digest in by_name.output
    assert json.loads(by_file.output)["digest"] == shipped_policy(name).digest


def test_check_warns_of_labels_that_never_come() -> None:
    assert (
        "change_when_bored: never fires with the labels of meld"
        in run("check", "tutoring", "--label-set", "meld").output
    )


def test_check_refuses_what_can_not_work(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text((SHIPPED / "tutoring.yaml").read_text().replace("cool_down_s: 60", "cool_down_s: -60"))
    error = run("check", str(path)).exception
    assert isinstance(error, InvalidPolicy)
    assert re.search(r"rules\.1: cool_down_s: got -60\.0; expected", str(error))


def test_simulate_shows_actions_reasons_and_hand_offs() -> None:
    shown = run("simulate", CALL).output
    for action in ("repeat_slowly", "explain_next_step", "acknowledge", "transfer (to a person of the service team)"):
        assert action in shown
    assert re.search(r"264 events: used \d+, gated \d+", shown)


def test_simulate_reads_what_the_context_allows_alone() -> None:
    lesson = run("simulate", LESSON, "--policy", "tutoring")
    assert "give_hint" in lesson.output
    assert "not allowed" not in lesson.output
    call = run("simulate", CALL, "--policy", "tutoring")
    assert "not_allowed 264" in call.output
    assert "Article 5(1)(f)" in call.output
    excepted = run("simulate", CALL, "--policy", "tutoring", "--exemption", "medical")
    assert "not_allowed" not in excepted.output
    assert isinstance(run("simulate", CALL, "--context", "office").exception, ValueError)


def test_simulate_says_each_step_as_json() -> None:
    steps = [json.loads(line) for line in run("simulate", CALL, "--json").output.splitlines()]
    assert len(steps) == 264
    acts = [step["decision"] for step in steps if step["decision"]["kind"] == "act"]
    assert acts[-1]["hand_off_to"] == "a person of the service team"
    assert all(act["reason"] for act in acts)


@pytest.mark.long
@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_simulate_draws_the_time_line(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"session{suffix}"
    assert run("simulate", CALL, "--picture", str(path)).exit_code == 0
    drawn = path.read_bytes()
    assert drawn.startswith(b"\x89PNG" if suffix == ".png" else b"<?xml")
    assert len(drawn) > 20_000


def test_an_answer_to_a_film_is_a_session(tmp_path: Path) -> None:
    """As `cmt predict --json` writes it."""
    path = tmp_path / "answer.json"
    shares = dict(of("anger", 0).probabilities)
    window = {"label": "anger", "probability": 0.8, "probabilities": shares, "valence": -0.5, "arousal": 0.2}
    windows = [{**window, "start_s": 4.0 * n, "end_s": 4.0 * (n + 1)} for n in range(5)]
    whole = {**window, "modalities": ["audio"], "digest": "d", "trained": True, "label_set": "meld", "windows": windows}
    path.write_text(json.dumps(whole))
    seen = read_session(path)
    assert [(one.start_s, one.end_s, one.modalities, one.digest) for one in seen][:2] == [
        (0, 4, ("audio",), "d"),
        (4, 8, ("audio",), "d"),
    ]
    assert "acknowledge" in run("simulate", str(path)).output
    path.write_text(json.dumps({**whole, "windows": []}))
    with pytest.raises(InvalidEvent, match=r"answer\.json: got an answer without windows"):
        read_session(path)


def test_sessions_are_files(tmp_path: Path) -> None:
    path = tmp_path / "session.jsonl"
    events = [of("anger", 1, valence=0.5), Observation(2, 2), of("joy", 3, trained=False, quality={"image": 0.5})]
    write_session(events, path)
    again = read_session(path)
    assert [(one.end_s, one.trained, one.quality) for one in again] == [
        (1, True, {}),
        (2, True, {}),
        (3, False, {"image": 0.5}),
    ]
    path.write_text(path.read_text() + "\n{}\n")
    with pytest.raises(InvalidEvent, match=r"session\.jsonl, line 5: event\.end_s: got nothing; expected a number"):
        read_session(path)
    path.write_text("\n")
    with pytest.raises(InvalidEvent, match="got no observation"):
        read_session(path)
