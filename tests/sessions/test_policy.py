"""Policies: what fires when, how often, and when a person takes over."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cmt_pipeline.labels import LABEL_SETS
from cmt_session import (
    InvalidPolicy,
    Observation,
    Policy,
    Session,
    SessionState,
    Step,
    StreamOptions,
    TrackerOptions,
    advance,
    open_policy,
    policy_from_yaml,
    ruling,
    shipped_policies,
    shipped_policy,
)
from cmt_session.decide import REASONS
from cmt_session.policy_file import MAX_FILE_BYTES, SHIPPED, warnings_of
from session_events import of, sessions

SMALL: dict[str, Any] = {
    "name": "small",
    "about": "For tests.",
    "context": "general",
    "states": {"upset": ["anger", "disgust"], "glad": ["joy"]},
    "hand_off": {"to": "a person", "quiet_s": 100},
    "rules": [
        {
            "name": "calm_down",
            "when": {"state": ["upset"], "for_s": 5},
            "action": "acknowledge",
            "reason": "Something went wrong.",
            "cool_down_s": 20,
            "most_firings": 3,
        }
    ],
}
QUICK = TrackerOptions(dwell_s=0, frames=StreamOptions(0.01, 6, 1))
SLOW = replace(QUICK, frames=StreamOptions(2, 6, 1))


def dumped(values: Any) -> str:
    """As YAML without references."""
    return yaml.safe_dump(json.loads(json.dumps(values)))


def small(rule: dict[str, Any] | None = None, **more: Any) -> Policy:
    """The small policy with another rule, or other fields."""
    rules = [{**SMALL["rules"][0], **rule}] if rule else SMALL["rules"]
    return policy_from_yaml(dumped({**SMALL, "rules": rules, **more}))


def run(policy: Policy, *parts: tuple[str, int], options: TrackerOptions = QUICK) -> list[Step]:
    """A picture a second: each part is a label and for how many seconds; no label is nothing there."""
    session, second, steps = Session(policy, options), 0, []
    for label, seconds in parts:
        for _ in range(seconds):
            seen = of(label, second, p=0.99, valence=-0.5) if label else Observation(second, second)
            steps.append(session.observe(seen))
            second += 1
    return steps


def acts(steps: list[Step]) -> list[tuple[float, str | None]]:
    return [
        (step.reading.clock_s, step.decision.action) for step in steps if step.decision and step.decision.kind == "act"
    ]


def test_a_rule_fires_after_its_time_cools_down_and_ends() -> None:
    steps = run(small(), ("anger", 90))
    assert acts(steps) == [(5, "acknowledge"), (25, "acknowledge"), (45, "acknowledge")]
    whys = {step.reading.clock_s: step.decision.why for step in steps if step.decision}
    assert (whys[0], whys[10], whys[80]) == ("no_rule", "cooling_down", "exhausted")


def test_time_in_state_is_that_of_the_policys_state() -> None:
    """From anger to disgust nothing changes for a policy that calls both upset."""
    steps = run(small(), ("anger", 3), ("disgust", 9))
    assert acts(steps) == [(5, "acknowledge")]
    assert {step.decision.since_s for step in steps if step.decision} == {0}


def test_until_ends_a_rule() -> None:
    rule = {"when": {"state": ["upset"], "for_s": 5, "until_s": 8}, "cool_down_s": 0, "most_firings": 99}
    assert [at for at, _ in acts(run(small(rule), ("anger", 20)))] == [5, 6, 7, 8]


def test_the_first_rule_that_may_fire_does_and_the_gap_holds_for_all() -> None:
    second = {**SMALL["rules"][0], "name": "second", "action": "wait", "cool_down_s": 1}
    policy = policy_from_yaml(dumped({**SMALL, "rules": [SMALL["rules"][0], second], "gap_s": 4}))
    assert acts(run(policy, ("anger", 14))) == [(5, "acknowledge"), (9, "wait"), (13, "wait")]


def test_an_escalation_hands_off_and_the_policy_is_quiet_then() -> None:
    escalation = {"after": 2, "within_s": 60, "action": "transfer", "reason": "Twice is enough.", "hand_off": True}
    steps = run(small({"escalate": escalation, "most_firings": 9}), ("anger", 200))
    assert acts(steps)[:3] == [(5, "acknowledge"), (25, "acknowledge"), (45, "transfer")]
    handed = next(step.decision for step in steps if step.decision and step.decision.hand_off_to)
    assert (handed.why, handed.hand_off_to, handed.reason) == ("escalated", "a person", "Twice is enough.")
    assert {step.decision.why for step in steps[46:145] if step.decision} == {"handed_off"}
    assert acts(steps)[3] == (145, "acknowledge")


def test_firings_long_ago_do_not_escalate() -> None:
    escalation = {"after": 2, "within_s": 30, "action": "transfer", "reason": "Twice is enough."}
    steps = run(small({"escalate": escalation, "most_firings": 9}), ("anger", 100))
    assert {action for _, action in acts(steps)} == {"acknowledge"}


def test_a_share_of_recent_time_needs_that_much_time() -> None:
    rule = {"when": {"state": ["upset"], "share": {"at_least": 0.5, "over_s": 20}}}
    assert acts(run(small(rule), ("anger", 30)))[0][0] == 20
    wavering = [("anger", 8), ("joy", 4)] * 5
    assert acts(run(small(rule), *wavering))[0][0] == 24  # the first moment of anger with 20 s behind it
    assert not acts(run(small(rule), *[("anger", 4), ("joy", 8)] * 5))


def test_trend_valence_and_certainty_are_asked_of_the_reading() -> None:
    def first(**when: Any) -> float | None:
        found = acts(run(small({"when": {"state": ["glad"], **when}}), ("neutral", 10), ("joy", 100), options=SLOW))
        return found[0][0] if found else None

    begun = first()
    assert begun is not None
    assert first(trend="rising") == begun
    late = first(trend="steady")
    assert late is not None
    assert late > begun
    sure = first(certainty=0.9)
    assert sure is not None
    assert sure > begun
    assert first(valence_below=-0.4) == begun
    assert first(valence_above=-0.4) is None


def test_no_evidence_is_a_state_of_its_own_and_else_an_abstention() -> None:
    steps = run(small(), ("joy", 3), ("", 20))
    last = steps[-1].decision
    assert last is not None
    assert (last.kind, last.why, last.state) == ("abstain", "absent", "no_evidence")
    ask = {"when": {"state": ["no_evidence"], "for_s": 5}, "action": "ask"}
    assert acts(run(small(ask), ("joy", 3), ("", 30)))[0][1] == "ask"


def test_what_does_not_count_fires_nothing() -> None:
    session = Session(small({"when": {"state": ["upset"]}, "cool_down_s": 1, "most_firings": 99}), QUICK)
    session.observe(of("anger", 0))
    poor = session.observe(of("anger", 2, quality={"image": 0.1})).decision
    good = session.observe(of("anger", 3)).decision
    assert poor is not None
    assert good is not None
    assert (poor.kind, poor.why, good.kind) == ("abstain", "poor_input", "act")


def test_a_policy_says_how_its_sessions_are_tracked() -> None:
    tracking = {"enter": 0.7, "dwell_of": {"joy": 3}, "streams": {"text": {"tau_s": 9, "hold_s": 60, "weight": 2}}}
    options = Session(small(tracking=tracking)).options
    assert (options.enter, options.dwell("joy"), options.stream("text").hold_s) == (0.7, 3, 60)
    assert options.exit == TrackerOptions().exit
    with pytest.raises(InvalidPolicy, match=r"^tracking: exit: got 0\.9 above enter 0\.3; expected at most that$"):
        small(tracking={"exit": 0.9})
    with pytest.raises(InvalidPolicy, match=r"^tracking\.alpha: Unexpected keyword argument$"):
        small(tracking={"alpha": 0.9})


def test_a_policy_reads_what_its_context_allows_unless_excepted() -> None:
    """Without options of the caller's own, so that nobody has to think of it."""
    lesson, seen = shipped_policy("tutoring"), of("anger", 0)
    assert Session(lesson).observe(seen).reading.refused == ("not_allowed",)
    assert advance(SessionState(), seen, lesson)[1].reading.refused == ("not_allowed",)
    assert Session(lesson).observe(replace(seen, modalities=("text",))).reading.outcome == "used"
    assert Session(small(context="workplace")).observe(seen).reading.outcome == "gated"
    assert Session(small(context="workplace", exemption="safety")).observe(seen).reading.outcome == "used"
    own = small(context="workplace", tracking={"modalities": ["image", "text"]})
    assert own.options().modalities == ("text",)
    assert own.options(ruling("medical")).modalities == ("image", "text")


def test_labels_without_a_state_are_other() -> None:
    rule = {"when": {"state": ["other"], "for_s": 2}, "action": "look"}
    assert acts(run(small(rule), ("fear", 5)))[0] == (2, "look")


def test_another_policy_remembers_what_has_the_same_name() -> None:
    one, state = small({"most_firings": 1}), SessionState()
    two = replace(one, about="Another.", rules=(replace(one.rules[0], most_firings=2), replace(one.rules[0], name="b")))
    for second in range(10):
        state, _ = advance(state, of("anger", second, p=0.99), one, QUICK)
    for second in range(10, 60):
        state, _ = advance(state, of("anger", second, p=0.99), two, QUICK)
    assert state.policy.policy == two.digest
    assert state.policy.fired["calm_down"].count == 2
    assert state.policy.fired["b"].count == 1


@pytest.mark.long
@settings(max_examples=25)
@given(sessions(most=40), st.sampled_from(["tutoring", "customer_service"]))
def test_cool_downs_gaps_and_limits_hold_in_any_session(events: list[Observation], name: str) -> None:
    policy = shipped_policy(name)
    session, fired, last, quiet_until = Session(policy), dict[str, list[float]](), -1e9, -1e9
    for seen in events:
        step = session.observe(seen)
        now, decision = step.reading.clock_s, step.decision
        assert decision is not None
        assert decision.reason
        if decision.kind != "act":
            assert decision.why in REASONS
            assert decision.action is decision.rule is decision.hand_off_to is None
            continue
        rule = next(rule for rule in policy.rules if rule.name == decision.rule)
        times = fired.setdefault(rule.name, [])
        assert not times or now >= times[-1] + rule.cool_down_s
        assert now >= last + policy.gap_s
        assert now >= quiet_until
        assert decision.state in rule.when.state
        times.append(now)
        assert len(times) <= rule.most_firings
        last = now
        if decision.hand_off_to:
            quiet_until = now + policy.hand_off.quiet_s


def test_shipped_policies_act_on_what_they_are_for() -> None:
    service = run(shipped_policy("customer_service"), ("neutral", 10), ("anger", 140), ("", 60))
    assert [action for _, action in acts(service)][:3] == ["acknowledge", "acknowledge", "transfer"]
    lesson = run(shipped_policy("tutoring"), ("surprise", 60), ("anger", 200))
    assert [action for _, action in acts(lesson)] == [
        "wait",
        "explain_differently",
        "give_hint",
        "give_hint",
        "call_teacher",
    ]


@pytest.mark.parametrize("name", shipped_policies())
def test_shipped_policies_are_whole(name: str) -> None:
    policy = shipped_policy(name)
    assert policy.name == name
    assert open_policy(SHIPPED / f"{name}.yaml") == policy
    assert not [told for told in warnings_of(policy) if "no rule for no_evidence" in told or "hands off" in told]
    known = {label for labels in LABEL_SETS.values() for label in labels}
    assert set(policy.state_of) & known


def test_shipped_policies_blame_the_material_and_never_the_person() -> None:
    """No reason has the person for its subject, or names what a person lacks."""
    person = re.compile(
        r"\b(you|your|learner|student|pupil|customer|they|lazy|wrong answer|unable|fail\w*)\b", re.IGNORECASE
    )
    for name in shipped_policies():
        for rule in shipped_policy(name).rules:
            for reason in (rule.reason, rule.escalate.reason if rule.escalate else ""):
                if rule.when.state != ("no_evidence",):
                    assert not person.search(reason), reason


def changed(path: str, value: Any) -> str:
    """The small policy as YAML with another value in a place; `...` removes it."""
    values = json.loads(json.dumps(SMALL))
    *before, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    there = values
    for part in before:
        there = there[part]
    if value is ...:
        del there[last]
    else:
        there[last] = value
    return dumped(values)


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("name", ..., "name: Field required"),
        ("name", "Small One", "name: got 'Small One'; expected lower-case"),
        ("more", 1, "more: Unexpected keyword argument"),
        ("context", "office", "context: Input should be 'general'"),
        ("states", {}, "states: got 0; expected 1 to 32"),
        ("states.upset", [], "states.upset: got no label"),
        ("states.no_evidence", ["calm"], "states: got 'no_evidence', which every policy has"),
        ("states.glad", ["happiness", "angry"], "in one of them"),
        ("hand_off.quiet_s", -1, "hand_off: quiet_s: got -1.0; expected a number from 0 to 86400"),
        ("rules", [], "rules: got 0; expected 1 to 32"),
        ("rules", SMALL["rules"] * 2, "rules: got the name 'calm_down' twice"),
        ("rules.0.cool_down_s", ..., "rules.1.cool_down_s: Field required"),
        ("rules.0.most_firings", 0, "rules.1: most_firings: got 0; expected a number from 1 to 1000"),
        ("rules.0.most_firings", 1.5, "rules.1.most_firings: Input should be a valid integer"),
        ("rules.0.cool_down_s", "20", "rules.1.cool_down_s: Input should be a valid number"),
        ("rules.0.cool_down_s", float("inf"), "rules.1: cool_down_s: got inf; expected a number"),
        ("rules.0.reason", " ", "rules.1: reason: got 1 characters; expected a sentence"),
        ("rules.0.action", "do it", "rules.1: action: got 'do it'; expected lower-case"),
        ("rules.0.action", False, "put it in quotes"),
        ("rules.0.when.state", ["sad"], "rules.calm_down.when.state: got 'sad'; expected one of glad, no_evidence"),
        ("rules.0.when.state", [], "rules.1.when: state: got none"),
        ("rules.0.when.until_s", 2, "rules.1.when: until_s: got 2.0; expected a number from 5"),
        ("rules.0.when.trend", "up", "rules.1.when.trend: Input should be 'any'"),
        ("rules.0.when", {"state": ["unsettled"], "certainty": 0.5}, "expected that of the policy's own states alone"),
        ("rules.0.when.share", {"at_least": 0, "over_s": 9}, "rules.1.when.share: at_least: got 0.0"),
        (
            "rules.0.escalate",
            {"after": 3, "within_s": 9, "action": "a", "reason": "b"},
            "escalate.after: got 3 of at most 3 firings",
        ),
    ],
)
def test_a_policy_that_can_not_work_is_refused_with_the_place(path: str, value: Any, told: str) -> None:
    with pytest.raises(InvalidPolicy, match=re.escape(told)):
        policy_from_yaml(changed(path, value))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "got null|valid|Input"),
        ("[]", "Input should be"),
        ("name: x\nname: y", "line 2: got 'name' twice"),
        ("a: &a [1]\nb: *a", "line 2: got a reference"),
        ("a: [", "line 1: got no YAML"),
        ("a: 2001-01-01", "other than text, numbers"),
        ("a: 2001-13-01", "got no YAML of plain values"),
        ("? [1]\n: 2", "line 1: got a name that is no text"),
        ("a: !!python/object:os.system x", "line 1: got no YAML"),
        ("[" * 30_000 + "]" * 30_000, "line 1: got more than 16 levels"),
        (b"\xff\xfe\x00", "got no YAML"),
        ("#" * (MAX_FILE_BYTES + 1), "got more than"),
    ],
)
def test_a_file_that_is_no_policy_is_refused(text: str | bytes, told: str) -> None:
    with pytest.raises(InvalidPolicy, match=told):
        policy_from_yaml(text)


def test_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: x")
    with pytest.raises(InvalidPolicy, match=re.escape(f"{path}: ")):
        open_policy(path)
    with pytest.raises(InvalidPolicy, match=r"expected a \.yaml file, or one of customer_service, tutoring"):
        open_policy("nonsense")


def test_warnings_say_what_likely_is_not_meant() -> None:
    policy = small({"cool_down_s": 0, "when": {"state": ["glad"]}})
    assert warnings_of(policy, "calm,angry") == [
        "states.upset: no rule asks for it",
        "no rule for no_evidence: where nothing can be read, the policy abstains and does nothing",
        "no rule hands off to a person",
        "rules.calm_down: without a cool-down it may fire at every event",
        "rules.calm_down: never fires with the labels of calm,angry, which has none of glad",
    ]
    assert any("change_when_bored: never fires" in told for told in warnings_of(shipped_policy("tutoring"), "meld"))
