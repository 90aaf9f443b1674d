"""The doctor and the real Triton on repositories made by chance: the same models and requests fail for both."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest

from cmt_server.doctor.diagnosis import Diagnosis, diagnose
from cmt_server.doctor.repository import Repository, read_repositories
from tiny_triton import Step, TinyServer, ensemble, python_model, write_model

pytestmark = [pytest.mark.triton, pytest.mark.slow]

EXPLICIT = ("--model-control-mode=explicit", "--load-model=*")
MEMBERS = [f"m{i}" for i in range(5)]
ENSEMBLES = [f"e{i}" for i in range(40)]
#: Mostly what fits; each may be drawn.
DIMS = [*["1"] * 6, "-1", "[-1, 1]", "[-1, 1]"]
BATCHES = ["", "max_batch_size: 0", "max_batch_size: 1", "max_batch_size: 4", "max_batch_size: 8"]
VERSIONS = [*[1] * 12, *[-1] * 12, 2, None]
FOLDERS: list[tuple[int, ...]] = [*[(1,)] * 12, (1, 2), ()]


def write_by_chance(repository: Path, chance: random.Random) -> None:
    """Members, and chains of one to three steps above them and above earlier ensembles, some of them miswired."""
    for name in MEMBERS:
        config = python_model(more=chance.choice(BATCHES)).replace("dims: 1", f"dims: {chance.choice(DIMS)}")
        write_model(repository, name, config)
    for count, name in enumerate(ENSEMBLES):
        config = ensemble(steps_by_chance(chance, ENSEMBLES[:count]), more=chance.choice(BATCHES))
        for _ in range(2):  # the input's, then the output's
            config = config.replace("dims: 1 }", f"dims: {chance.choice(DIMS)}  }}", 1)
        write_model(repository, name, config, chance.choice(FOLDERS))


def steps_by_chance(chance: random.Random, inner: list[str]) -> list[Step]:
    tensors = ["x", *(f"t{i}" for i in range(chance.choice([0, 1, 1, 2]))), "y"]
    steps = []
    for taken, made in itertools.pairwise(tensors):
        model = chance.choice(MEMBERS + inner if chance.random() < 0.3 else MEMBERS)
        taken = taken if chance.random() < 0.97 else chance.choice(tensors)
        made = made if chance.random() < 0.99 else "z"
        steps.append(Step(model, {"x": taken}, {"y": made}, chance.choice(VERSIONS)))
    return steps


def with_what_stands_on(models: set[str], repository: Repository) -> set[str]:
    """The models, and the ensembles that lead to one of them: those can't be better."""
    reached = set(models)
    for name in ENSEMBLES:  # each stands on earlier ones alone
        steps = repository.models[name].config.ensemble_scheduling.step
        if any(step.model_name in reached for step in steps):
            reached.add(name)
    return reached


def named(diagnosis: Diagnosis, rule: str = "") -> set[str]:
    """Models with a finding of this rule, or with any error."""
    return {
        one.model for one in diagnosis.findings if one.rule.id == rule or (not rule and one.rule.severity == "error")
    }


@pytest.mark.parametrize("seed", range(4))
def test_they_agree(seed: int, tmp_path: Path) -> None:
    write_by_chance(tmp_path / "repository", random.Random(seed))
    diagnosis = diagnose([tmp_path / "repository"])
    repository = read_repositories([tmp_path / "repository"])[0][0]
    stopping = with_what_stands_on(named(diagnosis, "batch-stops-at-member"), repository)
    with TinyServer(tmp_path / "repository", tmp_path / "server", EXPLICIT) as server:
        loaded = {entry["name"] for entry in server.index() if entry.get("state") == "READY"}
        assert {*MEMBERS, *ENSEMBLES} - loaded == with_what_stands_on(named(diagnosis), repository)
        batching = [name for name in ENSEMBLES if name in loaded and repository.models[name].config.max_batch_size > 1]
        for name in batching:
            rest = [1] * len(repository.models[name].config.input[0].dims)
            assert server.infer(name, x=([1, *rest], [1.0]))[0] == 200
            assert (server.infer(name, x=([2, *rest], [1.0, 2.0]))[0] == 400) == (name in stopping), name
        assert batching
