"""What runs where, in one value: the live release, that on trial, and readiness pipeline by pipeline."""

from __future__ import annotations

import json
from dataclasses import replace

from cmt_client import FakeTransport, server_status
from cmt_client.fake import FAKE_RELEASE
from cmt_client.operations import ModelReady
from cmt_pipeline.pipelines import PIPELINES


def test_one_release_serves_every_pipeline() -> None:
    status = server_status(FakeTransport())
    assert (status.ready, status.live, status.trial) == (True, (1,), None)
    assert [pipeline.name for pipeline in status.pipelines] == list(PIPELINES)
    assert json.loads(json.dumps(status.to_json()))["live"] == [1]


def test_a_release_on_trial_and_its_share() -> None:
    fake = FakeTransport()
    fake.candidate, fake.canary_share = replace(FAKE_RELEASE, release=2), 0.25
    trial = server_status(fake).trial
    assert trial is not None
    assert (trial.release, trial.canary_share) == (fake.candidate, 0.25)
    assert server_status(fake).live == (1,)


def test_readiness_is_that_of_the_pipelines_alone() -> None:
    fake = FakeTransport()
    fake.unloaded.add("emotion")
    status = server_status(fake)
    assert status.ready
    assert {p.name for p in status.pipelines if not p.ready} == {"emotion"}
    assert sum(isinstance(call, ModelReady) for call in fake.calls) == len(PIPELINES)
