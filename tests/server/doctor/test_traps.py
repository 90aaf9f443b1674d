"""The traps themselves, on the real tritonserver: what the doctor says of a repository happens when it is served.

Each test asks the doctor about the repository that is served, then walks into the trap.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

from cmt_server.doctor.diagnosis import diagnose
from cmt_server.doctor.running import RunningTriton
from doctor_traps import BATCH, EXPLICIT, X, Y, at_once, in_a_batch, named, queue
from tiny_triton import MODEL, Step, TinyServer, ensemble, python_model, write_model

pytestmark = pytest.mark.triton

T = TypeVar("T")

TOKEN = "secret"
SHARED_CACHE = "--cache-config=local,size=1048576"

CACHE = "response_cache { enable: true }"
ALL = "version_policy { all { } }"
SAMPLE = 'inputs { key: "x" value { data_type: TYPE_FP32 dims: 1 zero_data: true } }'
CHAIN = (Step("one", X, {"y": "middle"}), Step("one", {"x": "middle"}, Y))
COMPLETES = """
    @staticmethod
    def auto_complete_config(config):
        config.set_dynamic_batching()
        return config
"""


def failures(server: TinyServer, *models: str) -> dict[str, int]:
    """Model and reason -> what Triton's metrics count, where that isn't 0."""
    pattern = r'^nv_inference_request_failure{model="(.+?)",reason="(.+?)",.* (\d+)$'
    counted = re.findall(pattern, server.metrics(), re.MULTILINE)
    return {f"{model} {reason}": int(count) for model, reason, count in counted if model in models and int(count)}


def eventually(look: Callable[[], T], expected: T) -> T:
    """What is there to see once it is as expected, or after some seconds: Triton counts after it has answered."""
    for _ in range(100):
        if (seen := look()) == expected:
            break
        time.sleep(0.05)
    return seen


def write_models(repository: Path) -> None:
    """Models that the ensembles use, and models with a trap of their own."""
    one_warm = f'model_warmup {{ name: "w" batch_size: 1 {SAMPLE} }}'
    models = {
        "one": python_model(),
        "batching": python_model(more=BATCH),
        "integers": python_model().replace("FP32", "INT64"),
        "needy": python_model(("x", "w")).replace(" optional: true", ""),
        "cached": python_model(outputs=("y", "z"), more=CACHE, dims=-1),
        "override": python_model(more=queue("allow_timeout_override: true"), sleep_ms=500),
        "default": python_model(
            more=queue("allow_timeout_override: true default_timeout_microseconds: 60000000"), sleep_ms=500
        ),
        "alone": python_model(more="max_batch_size: 8", sleep_ms=100),
        "together": python_model(more=BATCH, sleep_ms=100, dims=-1),
        "preferred": python_model(more=BATCH.replace("{ }", "{ preferred_batch_size: [4] }"), sleep_ms=300),
        "unpreferred": python_model(more=BATCH, sleep_ms=300),
        "tail": python_model(more=queue("max_queue_size: 1"), sleep_ms=100),
        "cold": python_model(add_first=100),
        "skipped": python_model(add_first=100, more=f'model_warmup {{ name: "w" {SAMPLE} }}'),
        "warm": python_model(add_first=100, more=one_warm),
        "misnamed": f'name: "other"\n{python_model()}',
        "roomy": python_model().replace("dims: 1", "dims: [-1, 1]"),
        "completing": python_model(more="max_batch_size: 8", sleep_ms=100),
        "wide": python_model(dims=3),
    }
    for name, config in models.items():
        write_model(repository, name, config)
    (repository / "completing" / "1" / "model.py").write_text(MODEL + COMPLETES)
    write_model(repository, "no_folder", python_model(), ())
    write_model(repository, "no_number", python_model(), ()).joinpath("v1").mkdir()
    write_model(repository, "leading_zero", python_model(), ()).joinpath("01").mkdir()
    write_model(repository, "none_chosen", python_model(more="version_policy { specific { versions: [3] } }"))
    write_model(repository, "latest_none", python_model(more="version_policy { latest { } }"))
    write_model(repository, "zero", python_model(broken=9), (0,))
    write_model(repository, "stage", python_model(add_version=10), (1, 2))
    write_model(repository, "named", python_model(more="version_policy { specific { versions: [1, 3] } }"))
    for name in ("left", "right"):
        write_model(repository, name, python_model(more=ALL, add_version=10))
    write_model(repository, "changing", python_model(more=ALL, add=1))


def write_ensembles(repository: Path) -> None:
    one = (Step("one", X, Y),)
    sides = (Step("left", X, Y), Step("right", X, {"y": "z"}))
    floating = (Step("left", X, Y, -1), Step("right", X, {"y": "z"}, -1))
    ensembles = {
        "exposed": ensemble(CHAIN, outputs=("middle", "y")),
        "closed": ensemble(sides, outputs=("y", "z")),
        "floats": ensemble(floating, outputs=("y", "z")),
        "no_input": ensemble(
            [Step("batching", X, Y), Step("batching", {"x": "w"}, {"y": "z"})],
            inputs=("x", "w?"),
            outputs=("y", "z"),
            more="max_batch_size: 8",
        ),
        "stale": ensemble([Step("changing", X, Y)], more=CACHE),
        "refuses_last": ensemble(
            [Step("batching", X, {"y": "m"}), Step("tail", {"x": "m"}, Y)], more="max_batch_size: 1"
        ),
        "ragged": ensemble([Step("together", X, Y)], more="max_batch_size: 8")
        .replace("dims: 1 }", "dims: -1 allow_ragged_batch: true }", 1)
        .replace("dims: 1", "dims: -1"),
        "no_version": ensemble([Step("one", X, Y, None)]),
        "not_loaded": ensemble([Step("stage", X, Y, 1)]),
        "not_there": ensemble([Step("stage", X, Y, 9)]),
        "no_model": ensemble([Step("nowhere", X, Y)]),
        "unproduced": ensemble([Step("one", {"x": "ghost"}, Y)]),
        "unused": ensemble(one, inputs=("x", "w")),
        "output_unproduced": ensemble([Step("one", X, {"y": "z"})]),
        "produced_twice": ensemble([Step("one", X, Y), Step("one", X, Y)]),
        "wrong_input": ensemble([Step("one", {"q": "x"}, Y)]),
        "wrong_output": ensemble([Step("one", X, {"q": "y"})]),
        "wrong_type": ensemble([Step("integers", X, Y)]),
        "unmapped": ensemble([Step("needy", X, Y)]),
        "big_batch": ensemble([Step("batching", X, Y)], more="max_batch_size: 9"),
        "has_instances": ensemble(one, more="instance_group { kind: KIND_CPU }"),
        "has_optimization": ensemble(one, more="optimization { priority: PRIORITY_MAX }"),
        "has_warmup": ensemble(one, more=f'model_warmup {{ name: "w" batch_size: 1 {SAMPLE} }}'),
        "has_batching": ensemble([Step("batching", X, Y)], more=BATCH),
        "over_unbatched": ensemble(CHAIN, more="max_batch_size: 8"),
        "over_roomy": ensemble(
            [Step("batching", X, {"y": "m"}), Step("roomy", {"x": "m"}, Y)], more="max_batch_size: 8"
        ),
        "of_version_0": ensemble([Step("zero", X, Y, None)]),
        "of_no_version": ensemble([Step("no_folder", X, Y, -1)]),
        "goes_nowhere": ensemble([*one, Step("one", X, {"y": "z"})]),
        "waits_for_itself": ensemble([Step("needy", {"x": "x", "w": "m"}, {"y": "m"}), Step("one", {"x": "m"}, Y)]),
        "wrong_shape": ensemble([Step("wide", X, Y)]),
        "wrong_shape_inside": ensemble([Step("one", X, {"y": "m"}), Step("wide", {"x": "m"}, Y)]),
        "circle": ensemble([Step("circle", X, Y)]),
        "first": ensemble([Step("second", X, Y)]),
        "second": ensemble([Step("third", X, Y)]),
        "third": ensemble([Step("one", X, {"y": "m"}), Step("first", {"x": "m"}, Y)]),
    }
    for name, config in ensembles.items():
        write_model(repository, name, config)
    write_model(repository, "ensemble_without_folder", ensemble(one), ())
    write_model(repository, "misread", ensemble(one)).joinpath("2.bak").mkdir()


#: Models that Triton doesn't load, and the rule that says so.
NOT_LOADED = {
    "misnamed": "name-differs-from-folder",
    "twin": "model-in-two-folders",
    "no_version": "step-version-missing",
    "not_loaded": "step-unavailable",
    "not_there": "step-unavailable",
    "no_model": "step-unavailable",
    "unproduced": "ensemble-wiring",
    "unused": "ensemble-wiring",
    "output_unproduced": "ensemble-wiring",
    "produced_twice": "ensemble-wiring",
    "wrong_input": "ensemble-wiring",
    "wrong_output": "ensemble-wiring",
    "wrong_type": "ensemble-wiring",
    "unmapped": "ensemble-wiring",
    "big_batch": "ensemble-batch-above-member",
    "has_instances": "ensemble-settings",
    "has_optimization": "ensemble-settings",
    "has_warmup": "ensemble-settings",
    "has_batching": "unreadable-config",
    "of_no_version": "step-unavailable",
    "goes_nowhere": "ensemble-wiring",
    "waits_for_itself": "ensemble-wiring",
    "wrong_shape": "ensemble-wiring",
    "wrong_shape_inside": "ensemble-wiring",
    "circle": "circular-ensembles",
    "first": "circular-ensembles",
    "second": "circular-ensembles",
    "third": "circular-ensembles",
    "no_folder": "no-version",
    "no_number": "no-version",
    "leading_zero": "no-version",
    "none_chosen": "no-version",
    "latest_none": "no-version",
    "ensemble_without_folder": "no-version",
}


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The repository of most tests, and a second one with a model that both have."""
    first, second = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")
    write_models(first)
    write_ensembles(first)
    for repository in (first, second):
        write_model(repository, "twin", python_model())
    return first, second


@pytest.fixture(scope="module")
def found(repositories: tuple[Path, Path]) -> set[tuple[str, str]]:
    """(rule, model) of what the doctor finds, before a test changes a file."""
    return named(diagnose(repositories))


@pytest.fixture(scope="module")
def triton(
    found: set[tuple[str, str]], repositories: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TinyServer]:
    flags = (*EXPLICIT, SHARED_CACHE, f"--model-repository={repositories[1]}")
    with TinyServer(repositories[0], tmp_path_factory.mktemp("server"), flags, TOKEN) as running:
        yield running


@pytest.mark.long
def test_what_triton_does_not_load_is_what_the_doctor_says_it_does_not(
    triton: TinyServer, found: set[tuple[str, str]]
) -> None:
    loaded = {entry["name"] for entry in triton.index() if entry.get("state") == "READY"}
    everything = {folder.name for folder in triton.repository.iterdir()}
    assert everything - loaded == set(NOT_LOADED)
    refused = {(rule, model) for rule, model in found if rule in set(NOT_LOADED.values())}
    assert refused == {(rule, model) for model, rule in NOT_LOADED.items()}


def test_exposed_intermediate(triton: TinyServer, found: set[tuple[str, str]]) -> None:
    assert [model for rule, model in found if rule == "exposed-intermediate"] == ["exposed"]
    assert triton.infer("exposed", x=1.0)[0] == 200
    status, error = triton.infer("exposed", ["y"], x=1.0)
    assert status == 400
    assert "unexpected deadlock" in error
    assert triton.infer("closed", ["z"], x=1.0)[0] == 200


def test_step_without_input(triton: TinyServer, found: set[tuple[str, str]]) -> None:
    assert [model for rule, model in found if rule == "step-without-input"] == ["no_input"]
    status, error = triton.infer("no_input", x=in_a_batch())
    assert status == 400
    assert "request has 0 inputs" in error
    assert triton.infer("no_input", x=in_a_batch(), w=in_a_batch())[0] == 200


def test_floating_step_version(triton: TinyServer, found: set[tuple[str, str]]) -> None:
    assert {model for rule, model in found if rule == "floating-step-version"} == {"floats"}
    second = triton.repository / "left" / "2"
    second.mkdir()
    (second / "model.py").write_text((second.parent / "1" / "model.py").read_text())
    assert triton.load("left")[0] == 200  # and `right` not yet
    assert triton.infer("floats", x=0.0) == (200, {"y": [20.0], "z": [10.0]})
    assert triton.infer("closed", x=0.0) == (200, {"y": [10.0], "z": [10.0]})


def test_version_never_loaded(triton: TinyServer, found: set[tuple[str, str]]) -> None:
    assert [model for rule, model in found if rule == "version-never-loaded"] == ["stage"]
    assert triton.ask("/v2/models/stage/versions/2/ready")[0] == 200
    assert triton.ask("/v2/models/stage/versions/1/infer", {"inputs": []})[0] == 404


def test_policy_without_version(triton: TinyServer, found: set[tuple[str, str]]) -> None:
    assert ("policy-without-version", "named") in found
    assert [e["state"] for e in triton.index() if e["name"] == "named"] == ["READY"]


def test_stale_ensemble_cache(triton: TinyServer, found: set[tuple[str, str]]) -> None:
    assert [model for rule, model in found if rule == "stale-ensemble-cache"] == ["stale"]
    assert triton.infer("stale", x=1.0)[1] == {"y": [2.0]}
    file = triton.repository / "changing" / "config.pbtxt"
    file.write_text(
        file.read_text().replace('key: "add" value { string_value: "1"', 'key: "add" value { string_value: "9"')
    )
    assert triton.load("changing")[0] == 200
    assert triton.infer("changing", x=1.0)[1] == {"y": [10.0]}
    assert triton.infer("stale", x=1.0)[1] == {"y": [2.0]}, "the old answer still comes"
    assert triton.infer("stale", x=2.0)[1] == {"y": [11.0]}


def test_cache_key_ignores_the_outputs_asked_for(triton: TinyServer, found: set[tuple[str, str]]) -> None:
    assert ("cache-key", "cached") in found
    question = ([2], [1.0, 2.0])
    assert triton.infer("cached", ["y"], x=question)[1] == {"y": [1.0, 2.0]}
    assert triton.infer("cached", ["z"], x=question)[1] == {"y": [1.0, 2.0]}


@pytest.mark.long
def test_timeout_override_without_default(triton: TinyServer, found: set[tuple[str, str]]) -> None:
    assert [model for rule, model in found if rule == "timeout-override-without-default"] == ["override"]
    impatient = {"timeout": 100_000}  # us
    ignored = at_once(triton, "override", [in_a_batch()] * 3, parameters=impatient)
    heeded = at_once(triton, "default", [in_a_batch()] * 3, parameters=impatient)
    assert [status for status, _ in ignored] == [200] * 3
    assert 503 in [status for status, _ in heeded]


def test_batch_without_batcher(triton: TinyServer, found: set[tuple[str, str]]) -> None:
    assert [model for rule, model in found if rule == "batch-without-batcher"] == ["alone"]
    items, batches = triton.counts("together")
    for model in ("alone", "together"):
        at_once(triton, model, [in_a_batch()] * 6)
    assert triton.counts("alone", 6) == (6, 6)
    assert triton.counts("together", items + 6)[1] - batches < 6


@pytest.mark.long
def test_auto_complete_turns_batching_on(tmp_path: Path, triton: TinyServer, found: set[tuple[str, str]]) -> None:
    """Of files the doctor says what Triton does by default; of a server, what is in force."""
    assert ("batch-without-batcher", "completing") not in found
    in_force = named(diagnose([], RunningTriton(triton.url, TOKEN).observe()))
    assert ("batch-without-batcher", "completing") in in_force
    folder = write_model(tmp_path / "repository", "completing", python_model(more="max_batch_size: 8", sleep_ms=100))
    (folder / "1" / "model.py").write_text(MODEL + COMPLETES)
    with TinyServer(tmp_path / "repository", tmp_path / "server", completes=True) as completing:
        at_once(completing, "completing", [in_a_batch()] * 6)
        assert completing.counts("completing", 6)[1] < 6
        in_force = named(diagnose([], RunningTriton(completing.url).observe()))
        assert ("batch-without-batcher", "completing") not in in_force


def test_an_ensemble_may_batch_above_models_that_do_not(triton: TinyServer, found: set[tuple[str, str]]) -> None:
    assert [model for rule, model in found if rule == "ensemble-batch-above-member"] == ["big_batch"]
    assert [model for rule, model in found if rule == "batch-stops-at-member"] == ["over_unbatched"]
    two = ([2, 1], [1.0, 2.0])
    assert triton.infer("over_roomy", x=two) == (200, {"y": [1.0, 2.0]})
    assert triton.infer("over_unbatched", x=in_a_batch()) == (200, {"y": [1.0]})
    status, error = triton.infer("over_unbatched", x=two)
    assert status == 400
    assert "unexpected shape" in error


def test_folders_whose_number_triton_misreads(triton: TinyServer, found: set[tuple[str, str]]) -> None:
    assert [model for rule, model in found if rule == "misread-version-folder"] == ["misread"]
    assert [entry["version"] for entry in triton.index() if entry["name"] == "misread"] == ["2"]


def test_ensemble_ragged_batch(triton: TinyServer, found: set[tuple[str, str]]) -> None:
    assert [model for rule, model in found if rule == "ensemble-ragged-batch"] == ["ragged"]
    items, batches = triton.counts("together")
    at_once(triton, "ragged", [in_a_batch(length=length) for length in range(1, 7)])
    assert triton.counts("together", items + 6)[1] - batches == 6


@pytest.mark.long
def test_preferred_batch_size(triton: TinyServer, found: set[tuple[str, str]]) -> None:
    """Six wait while one is computed: a batch of four and one of two, where one of six would do."""
    assert [model for rule, model in found if rule == "preferred-batch-size"] == ["preferred"]
    for model in ("preferred", "unpreferred"):
        with ThreadPoolExecutor(1) as first:
            first.submit(triton.infer, model, x=in_a_batch())
            time.sleep(0.1)
            at_once(triton, model, [in_a_batch()] * 6)
    assert triton.counts("preferred", 7) == (7, 3)
    assert triton.counts("unpreferred", 7) == (7, 2)


def test_warmup(triton: TinyServer, found: set[tuple[str, str]]) -> None:
    assert {model for rule, model in found if rule == "warmup-never-runs"} == {"skipped"}
    assert ("no-warmup", "cold") in found
    assert ("no-warmup", "warm") not in found
    was_its_first = {model: triton.infer(model, x=1.0)[1]["y"] == [101.0] for model in ("cold", "skipped", "warm")}
    assert was_its_first == {"cold": True, "skipped": True, "warm": False}


def test_a_last_step_may_refuse(triton: TinyServer, found: set[tuple[str, str]]) -> None:
    """Which is counted as a fault of the ensemble, and not at all for the step."""
    assert ("refusal-beside-sibling", "refuses_last") not in found
    statuses = [status for status, _ in at_once(triton, "refuses_last", [in_a_batch()] * 8)]
    assert set(statuses) == {200, 503}
    counted = {"refuses_last OTHER": 2 * statuses.count(503)}
    assert eventually(lambda: failures(triton, "refuses_last", "tail"), counted) == counted
    assert triton.unload("refuses_last")[0] == 200
    assert triton.settled("refuses_last") == "UNAVAILABLE"


def test_a_server_that_wants_a_token_is_closed_and_its_configurations_are_read_with_it(triton: TinyServer) -> None:
    stranger = RunningTriton(triton.url).observe()
    assert (stranger.control_open, stranger.shared_memory_open, stranger.index) == (False, False, None)
    seen = RunningTriton(triton.url, TOKEN).observe()
    told = {rule for rule, _ in named(diagnose([], seen))}
    assert {"published-vulnerabilities", "form-body-crash", "token-in-command-line"} <= told
    assert "listens-everywhere" not in told
    assert (seen.local, seen.version, seen.control_open, seen.shared_memory_open) == (True, (2, 51), False, False)
    rules = named(diagnose([], seen))
    assert ("exposed-intermediate", "exposed") in rules
    assert ("preferred-batch-size", "preferred") in rules
    assert ("preferred-batch-size", "unpreferred") not in rules, "what Triton fills in itself"
    assert not {rule for rule, _ in rules} & {"step-unavailable", "ensemble-wiring", "ensemble-settings"}
