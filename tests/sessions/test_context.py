"""Each rule of the table of contexts, and that the page has the same table."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest

from cmt_pipeline.errors import InvalidInput
from cmt_pipeline.modality import MODALITIES, SUBSETS
from cmt_session.context import CONTEXTS, EXEMPTIONS, RULES, ruling

#: context, exemption -> what may be read.
TABLE: dict[tuple[str, str | None], tuple[str, ...]] = {
    ("general", None): MODALITIES,
    ("customer_service", None): MODALITIES,
    ("education", None): ("text",),
    ("workplace", None): ("text",),
    ("medical", None): MODALITIES,
    ("education", "medical"): MODALITIES,
    ("education", "safety"): MODALITIES,
    ("workplace", "medical"): MODALITIES,
    ("workplace", "safety"): MODALITIES,
}


@pytest.mark.parametrize(("context", "exemption"), TABLE)
def test_each_rule_allows_and_refuses_what_it_says(context: str, exemption: str | None) -> None:
    rule, allowed = ruling(context, exemption), TABLE[context, exemption]
    assert rule.modalities == allowed
    for subset in SUBSETS:
        refused = [m for m in subset if m not in allowed]
        if not refused:
            rule.check(subset)
            continue
        with pytest.raises(InvalidInput, match=r"Article 5\(1\)\(f\)") as told:
            rule.check(subset)
        assert (told.value.field, told.value.code) == (refused[0], "not_allowed")
        assert "text alone" in told.value.message


def test_every_context_has_a_rule_and_text_alone_is_always_served() -> None:
    assert set(RULES) == set(CONTEXTS) == {context for context, _ in TABLE}
    for context, exemption in product(CONTEXTS, (None, *EXEMPTIONS)):
        ruling(context, exemption).check(["text"])


def test_an_exemption_is_said() -> None:
    assert "safety reasons" in ruling("workplace", "safety").reason
    assert "safety" not in ruling("general", "safety").reason


@pytest.mark.parametrize("given", [("office", None), ("workplace", "consent"), ("", None)])
def test_unknown_names_are_refused(given: Any) -> None:
    with pytest.raises(ValueError, match=r"got .*; expected"):
        ruling(*given)


def test_people_are_told_of_face_and_voice_alone() -> None:
    assert ruling("general").notice() == "This service infers emotions from your face and voice."
    assert ruling("general").notice(["audio", "text"]) == "This service infers emotions from your voice."
    assert ruling("general").notice(["text"]) == ruling("education").notice() == ""


def test_the_page_has_the_same_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "sessions.md").read_text()
    for rule in RULES.values():
        assert f"| `{rule.context}` | {rule.who} | {', '.join(rule.modalities)} | {rule.reason} |" in page
