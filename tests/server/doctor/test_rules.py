"""Every rule about configurations: repositories in which it fires, and others in which it must not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cmt_server.doctor.diagnosis import RULES, diagnose
from cmt_server.doctor.finding import Finding
from cmt_server.doctor.server_rules import CHECKS as SERVER_CHECKS
from tiny_triton import Step, ensemble, python_model, write_model

X, Y = {"x": "x"}, {"y": "y"}
BATCH = "max_batch_size: 4 dynamic_batching { }"
QUEUE = "max_batch_size: 4 dynamic_batching {{ default_queue_policy {{ {} }} }}"
PLAIN = python_model(more=BATCH)
BATCH_OF_4 = "max_batch_size: 4"
ROOMY = python_model().replace("dims: 1", "dims: [-1, 1]")
REQUIRED = PLAIN.replace(" optional: true", "")
CHAIN = (Step("a", X, {"y": "middle"}), Step("b", {"x": "middle"}, Y))
FAN = (Step("a", X, Y), Step("b", X, {"y": "z"}))
ONE = (Step("a", X, Y),)
CACHE = "response_cache { enable: true }"
TENSORRT = 'platform: "tensorrt_plan"'


def warmup(*samples: str) -> str:
    return " ".join(f'model_warmup {{ name: "{i}" {sample} }}' for i, sample in enumerate(samples))


def sample(length: int, batch: str = "batch_size: 1") -> str:
    return f'{batch} inputs {{ key: "x" value {{ data_type: TYPE_FP32 dims: {length} zero_data: true }} }}'


def graphs(*lengths: int, bound: str = "") -> str:
    specs = [f'graph_spec {{ batch_size: 1 {bound} input {{ key: "x" value {{ dim: {n} }} }} }}' for n in lengths]
    return f"optimization {{ cuda {{ graphs: true {' '.join(specs)} }} }}"


def tensorrt(more: str) -> str:
    return python_model(dims=-1, more=more).replace('backend: "python"', TENSORRT)


@dataclass(frozen=True)
class Case:
    """models: name -> configuration; fires: models that the rule names, none where it must be silent."""

    rule: str
    models: Mapping[str, str]
    fires: tuple[str, ...] = ()
    versions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    says: str = ""


def pair(config: str, **more: str) -> dict[str, str]:
    return {"a": config, "b": PLAIN, **more}


def wired(*steps: Step, **more: tuple[str, ...]) -> dict[str, str]:
    return pair(PLAIN, e=ensemble(steps, **more))


CASES = [
    # A step that refuses requests while another works on them.
    *(
        Case("refusal-beside-sibling", pair(QUEUE_MODEL, e=ensemble(FAN, outputs=("y", "z"))), ("e",), says="step 1")
        for QUEUE_MODEL in (
            python_model(more=QUEUE.format("max_queue_size: 4")),
            python_model(more=QUEUE.format("default_timeout_microseconds: 9")),
            python_model(
                more="dynamic_batching { priority_levels: 2 default_priority_level: 1 "
                "priority_queue_policy { key: 2 value { max_queue_size: 1 } } }"
            ),
        )
    ),
    Case("refusal-beside-sibling", pair(PLAIN, e=ensemble(FAN, outputs=("y", "z")))),
    *(
        Case("refusal-beside-sibling", pair(python_model(more=QUEUE.format(policy)), e=ensemble(FAN)))
        for policy in ("allow_timeout_override: true", "default_timeout_microseconds: 9 timeout_action: DELAY")
    ),
    *(  # first or last in a chain
        Case("refusal-beside-sibling", {**pair(PLAIN, e=ensemble(CHAIN)), which: python_model(more=QUEUE.format(full))})
        for which in ("a", "b")
        for full in ("max_queue_size: 1",)
    ),
    Case(
        "refusal-beside-sibling",
        pair(
            python_model(more=QUEUE.format("max_queue_size: 4")),
            inner=ensemble(ONE),
            outer=ensemble([Step("inner", X, Y), Step("b", X, {"y": "z"})], outputs=("y", "z")),
        ),
        ("outer",),
        says="a: default_queue_policy has max_queue_size 4",
    ),
    # Pins.
    Case("floating-step-version", wired(Step("a", X, {"y": "m"}, -1), Step("b", {"x": "m"}, Y)), ("e",), says="(a)"),
    Case("floating-step-version", wired(*CHAIN)),
    Case("floating-step-version", wired(Step("a", X, Y, -1))),
    Case("step-version-missing", wired(Step("a", X, Y, None)), ("e",)),
    Case("step-version-missing", wired(Step("a", X, Y, -1))),
    Case("step-unavailable", wired(Step("a", X, Y, 2)), ("e",), says="version 2 isn't there"),
    Case("step-unavailable", wired(*ONE), ("e",), {"a": (1, 2)}, says="version_policy loads 2"),
    Case("step-unavailable", wired(Step("nowhere", X, Y)), ("e",), says="isn't in the repository"),
    Case(
        "step-unavailable",
        pair(python_model(more=BATCH + " version_policy { specific { versions: [1, 2] } }"), e=ensemble(ONE)),
        versions={"a": (1, 2)},
    ),
    Case("step-unavailable", wired(Step("a", X, Y, -1)), versions={"a": (7,)}),
    # Outputs and inputs.
    Case("exposed-intermediate", wired(*CHAIN, outputs=("middle", "y")), ("e",), says="'middle' is an input of step 2"),
    Case("exposed-intermediate", wired(*CHAIN)),
    Case("exposed-intermediate", wired(*FAN, outputs=("y", "z"))),
    Case(
        "step-without-input",
        wired(Step("a", X, Y), Step("b", {"x": "w"}, {"y": "z"}), inputs=("x", "w?"), outputs=("y", "z")),
        ("e",),
        says="step 2 (b) has no input in a request without w",
    ),
    Case("step-without-input", wired(*FAN, inputs=("x?",), outputs=("y", "z"))),
    Case("step-without-input", wired(*ONE, inputs=("x",))),
    Case(  # a model that doesn't batch is called with nothing, and copes
        "step-without-input",
        {"a": python_model(), "e": ensemble(FAN[:1], inputs=("x?", "w"))},
    ),
    # Caches.
    Case("stale-ensemble-cache", pair(PLAIN, e=ensemble(ONE, more=CACHE)), ("e",)),
    Case("stale-ensemble-cache", pair(python_model(more=CACHE), e=ensemble(ONE))),
    Case("cache-key", {"a": python_model(more=CACHE, dims=-1) + " max_batch_size: 4"}, ("a",), says="shapes: x"),
    Case("cache-key", {"a": python_model(outputs=("y", "z"), more=CACHE)}, ("a",), says="2 outputs"),
    Case("cache-key", {"a": python_model(more=CACHE, dims=-1)}),
    Case("cache-key", {"a": python_model(outputs=("y", "z"), more="response_cache { enable: false }", dims=-1)}),
    # What Triton doesn't load.
    Case("ensemble-wiring", wired(Step("a", {"x": "ghost"}, Y)), ("e", "e"), says="'ghost', which nothing produces"),
    Case("ensemble-wiring", wired(Step("a", X, {"y": "z"})), ("e", "e"), says="'y' comes from no step"),
    Case("ensemble-wiring", wired(*ONE, inputs=("x", "w")), ("e",), says="'w' goes to no step"),
    Case("ensemble-wiring", wired(Step("a", X, Y), Step("b", X, Y)), ("e",), says="'y' comes from 2 steps"),
    Case("ensemble-wiring", wired(Step("a", {"q": "x"}, Y)), ("e",), says="no input 'q'"),
    Case("ensemble-wiring", wired(Step("a", X, {"q": "y"})), ("e",), says="no output 'q'"),
    Case(
        "ensemble-wiring",
        pair(PLAIN.replace("FP32", "INT64"), e=ensemble(ONE)),
        ("e", "e"),
        says="TYPE_FP32 elsewhere and TYPE_INT64",
    ),
    Case(
        "ensemble-wiring",
        {"a": python_model(("x", "w")).replace(" optional: true", ""), "e": ensemble(ONE)},
        ("e",),
        says="input 'w' of its model is not mapped",
    ),
    Case("ensemble-wiring", wired(*ONE, Step("b", X, {"y": "z"})), ("e",), says="'z' goes to no step and is no output"),
    Case("ensemble-wiring", wired(Step("a", {"x": "m"}, Y), Step("b", {"x": "y"}, {"y": "m"})), ("e",) * 3, says="own"),
    Case("ensemble-wiring", pair(python_model(dims=3), e=ensemble(ONE)), ("e", "e"), says="[1] elsewhere and [3] here"),
    Case("ensemble-wiring", pair(python_model(dims=3), b=PLAIN.replace(": 1", ": 4"), e=ensemble(CHAIN)), ("e",) * 3),
    Case("ensemble-wiring", pair(python_model(dims=-1), e=ensemble(ONE))),
    Case("ensemble-wiring", pair(PLAIN, e=ensemble(ONE).replace("dims: 1", "dims: [-1, 1]"))),
    Case("ensemble-wiring", pair(ROOMY, e=ensemble(ONE, more=BATCH_OF_4))),
    Case(
        "ensemble-wiring",
        pair(PLAIN, e=ensemble(ONE, more=BATCH_OF_4).replace("dims: 1", "dims: 2 reshape { shape: [1, 1] }")),
        ("e", "e"),
        says="[-1, 1, 1] elsewhere and [-1, 1] here",
    ),
    Case("ensemble-wiring", {"a": 'backend: "python"', "e": ensemble(ONE)}),  # Triton completes it
    Case("ensemble-wiring", pair(REQUIRED, e=ensemble(CHAIN), f=ensemble(FAN, outputs=("y", "z")))),
    Case("ensemble-batch-above-member", pair(PLAIN, e=ensemble(ONE, more="max_batch_size: 5")), ("e",), says="is 5"),
    Case("ensemble-batch-above-member", pair(PLAIN, e=ensemble(ONE, more="max_batch_size: 4"))),
    *(
        Case("ensemble-batch-above-member", pair(member, e=ensemble(ONE, more="max_batch_size: 5")))
        for member in (python_model(), python_model(more="max_batch_size: 0"), ensemble(ONE), 'backend: "python"')
    ),
    Case("batch-stops-at-member", {"a": python_model(), "e": ensemble(ONE, more=BATCH_OF_4)}, ("e",), says="dims [1]"),
    Case("batch-stops-at-member", {"a": python_model(dims=-1), "e": ensemble(ONE, more=BATCH_OF_4)}, ("e",)),
    Case("batch-stops-at-member", {"a": python_model(), "b": PLAIN, "e": ensemble(CHAIN, more=BATCH_OF_4)}, ("e",)),
    *(
        Case("batch-stops-at-member", {"a": member, "e": ensemble(ONE, more=more)})
        for member, more in (
            (ROOMY, BATCH_OF_4),
            (PLAIN, BATCH_OF_4),
            (python_model(), "max_batch_size: 1"),
            ("", BATCH_OF_4),
            (python_model(), ""),
            (python_model().replace('backend: "python"', 'backend: "onnxruntime"'), BATCH_OF_4),
        )
    ),
    Case(  # the batch came to the last step as a dimension, below a batch of 1
        "batch-stops-at-member",
        {
            "a": ROOMY,
            "b": ROOMY + " max_batch_size: 4",
            "e": ensemble([*CHAIN, Step("a", {"x": "y"}, {"y": "z"})], outputs=("z",), more=BATCH_OF_4),
        },
    ),
    Case(  # here it came as a batch again; steps are listed in any order
        "batch-stops-at-member",
        {
            "a": ROOMY,
            "b": PLAIN,
            "c": python_model(),
            "e": ensemble([Step("c", {"x": "y"}, {"y": "z"}), *CHAIN], outputs=("z",), more=BATCH_OF_4),
        },
        ("e",),
        says="step 1 (c)",
    ),
    # Circles of ensembles.
    Case("circular-ensembles", {"e": ensemble([Step("e", X, Y)])}, ("e",), says="its steps lead e -> e"),
    Case("circular-ensembles", {"e": ensemble([Step("f", X, Y)]), "f": ensemble([Step("e", X, Y)])}, ("e", "f")),
    Case(
        "circular-ensembles",
        pair(
            PLAIN,
            e=ensemble([Step("f", X, Y)]),
            f=ensemble([Step("b", X, {"y": "m"}), Step("g", {"x": "m"}, Y)]),
            g=ensemble([Step("e", X, Y)]),
        ),
        ("e", "f", "g"),
        says="f -> g -> e -> f",
    ),
    Case(
        "circular-ensembles",
        {"above": ensemble([Step("e", X, Y)]), "e": ensemble([Step("e", X, Y)]), "a": PLAIN},
        ("above", "e"),
        says="above -> e -> e; above the circle, not of it",
    ),
    Case(
        "circular-ensembles",
        pair(PLAIN, e=ensemble(ONE), f=ensemble([Step("e", X, {"y": "m"}), Step("e", {"x": "m"}, Y)])),
    ),
    *(
        Case("ensemble-settings", pair(PLAIN, e=ensemble(ONE, more=setting)), ("e",), says=setting.split()[0])
        for setting in ("instance_group { }", "optimization { }", "model_warmup { }")
    ),
    Case("ensemble-settings", pair(PLAIN, e=ensemble(ONE))),
    Case("unreadable-config", pair(PLAIN, e=ensemble(ONE, more="dynamic_batching { }")), ("e",), says="oneof"),
    Case("unreadable-config", {"a": "hello {{{"}, ("a",)),
    Case("unreadable-config", {"a": PLAIN}),
    Case("name-differs-from-folder", {"a": f'name: "b"\n{PLAIN}'}, ("a",), says="named 'b'"),
    Case("name-differs-from-folder", {"a": f'name: "a"\n{PLAIN}'}),
    # What does nothing, or less than it seems.
    Case("ensemble-ragged-batch", {"e": ensemble(ONE).replace("dims", "allow_ragged_batch: true dims", 1)}, ("e",)),
    Case("ensemble-ragged-batch", pair(PLAIN.replace("dims", "allow_ragged_batch: true dims", 1), e=ensemble(ONE))),
    Case(
        "timeout-override-without-default",
        {"a": python_model(more=QUEUE.format("allow_timeout_override: true"))},
        ("a",),
    ),
    Case(
        "timeout-override-without-default",
        {"a": python_model(more=QUEUE.format("allow_timeout_override: true default_timeout_microseconds: 5"))},
    ),
    Case("no-version", {"a": PLAIN, "e": ensemble(ONE)}, ("a", "e"), {"a": (), "e": ()}, says="no version's folder"),
    *(
        Case(
            "no-version",
            {"a": f"{PLAIN} version_policy {{ {policy} }}"},
            ("a",),
            {"a": (1, 2)},
            says="none of version 1",
        )
        for policy in ("specific { versions: [3] }", "specific { }", "latest { num_versions: 0 }", "latest { }")
    ),
    *(
        Case("no-version", {"a": f"{PLAIN} {policy}"}, versions={"a": (0,)})
        for policy in (
            "",
            "version_policy { }",
            "version_policy { all { } }",
            "version_policy { latest { num_versions: 9 } }",
        )
    ),
    Case("version-never-loaded", {"a": PLAIN + " version_policy { }"}, versions={"a": (1, 2)}),
    Case("step-version-missing", wired(Step("a", X, Y, None)), versions={"a": (0,)}),
    Case("step-unavailable", wired(Step("a", X, Y, -1)), ("e",), {"a": ()}, says="no version of its model is loaded"),
    Case("version-never-loaded", {"a": PLAIN}, ("a",), {"a": (1, 2, 10)}, says="version 1, 2 lies there"),
    Case("version-never-loaded", {"a": PLAIN + " version_policy { all { } }"}, versions={"a": (1, 2)}),
    Case(
        "version-never-loaded", {"a": PLAIN + " version_policy { latest { num_versions: 2 } }"}, versions={"a": (1, 2)}
    ),
    Case(
        "policy-without-version", {"a": PLAIN + " version_policy { specific { versions: [1, 3] } }"}, ("a",), says="3"
    ),
    Case("policy-without-version", {"a": PLAIN + " version_policy { specific { versions: 1 } }"}),
    Case("no-warmup", {"a": PLAIN}, ("a",)),
    Case("no-warmup", {"a": python_model(more=warmup(sample(1))), "e": ensemble(ONE)}),
    Case("warmup-never-runs", {"a": python_model(more=warmup(sample(1, "")))}, ("a",)),
    Case("warmup-never-runs", {"a": python_model(more=warmup(sample(1)))}),
    Case("one-warmup-length", {"a": python_model(dims=-1, more=warmup(sample(5), sample(5)))}, ("a",), says="[5]"),
    Case("one-warmup-length", {"a": python_model(dims=-1, more=warmup(sample(5), sample(6)))}),
    Case("one-warmup-length", {"a": python_model(more=warmup(sample(1)))}),
    Case("one-warmup-length", {"a": python_model(dims=-1)}),
    Case("cuda-graphs-without-spec", {"a": tensorrt(graphs())}, ("a",)),
    Case("cuda-graphs-without-spec", {"a": tensorrt(graphs(16))}),
    Case("cuda-graphs-without-spec", {"a": tensorrt(graphs()).replace("dims: -1", "dims: 3")}),
    Case("warmup-without-graph", {"a": tensorrt(graphs(16) + warmup(sample(16), sample(32)))}, ("a",), says="x [32]"),
    Case("warmup-without-graph", {"a": tensorrt(graphs(16, 32) + warmup(sample(16), sample(32)))}),
    Case(
        "warmup-without-graph",
        {"a": tensorrt(graphs(32, bound="graph_lower_bound { batch_size: 1 }") + warmup(sample(16)))},
    ),
    Case("batch-without-batcher", {"a": python_model(more="max_batch_size: 4")}, ("a",)),
    *(
        Case("batch-without-batcher", {"a": python_model(more=more)})
        for more in (BATCH, "max_batch_size: 1", "", "max_batch_size: 4 sequence_batching { }")
    ),
    Case(
        "batch-without-batcher",
        {"a": 'backend: "vllm" max_batch_size: 4', "e": ensemble(ONE, more="max_batch_size: 4")},
    ),
    *(
        Case("batch-without-batcher", {"a": f"{kind} max_batch_size: 4"}, fires)
        for kind, fires in (
            *((f'backend: "{name}"', ()) for name in ("onnxruntime", "openvino", "paddle", "tensorflow", "tensorrt")),
            *((f'platform: "{name}"', ()) for name in ("onnxruntime_onnx", "tensorrt_plan", "tensorflow_savedmodel")),
            ('default_model_filename: "model.onnx"', ()),
            ('backend: "pytorch"', ("a",)),
            ('platform: "pytorch_libtorch"', ("a",)),
            ("", ("a",)),  # its model.py lies there
        )
    ),
    Case("preferred-batch-size", {"a": python_model(more="dynamic_batching { preferred_batch_size: [2, 4] }")}, ("a",)),
    Case("preferred-batch-size", {"a": tensorrt("dynamic_batching { preferred_batch_size: [2, 4] }")}),
    Case(
        "preferred-batch-size",
        {"a": python_model(more="max_batch_size: 4 dynamic_batching { preferred_batch_size: 4 }")},
    ),
]

Found = Callable[[Case], list[Finding]]


@pytest.fixture
def found(tmp_path: Path) -> Found:
    """What the case's rule finds in the case's repository."""

    def findings(case: Case) -> list[Finding]:
        for name, config in case.models.items():
            write_model(tmp_path, name, config, case.versions.get(name, (1,)))
        return [found for found in diagnose([tmp_path]).findings if found.rule.id == case.rule]

    return findings


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.rule}-{'fires' if case.fires else 'silent'}")
def test_rule(case: Case, found: Found, tmp_path: Path) -> None:
    findings = found(case)
    assert tuple(one.model for one in findings) == case.fires
    assert all(str(tmp_path / one.model / "config.pbtxt") == one.where for one in findings)
    assert not case.fires or any(case.says in one.what for one in findings), findings


def test_every_rule_about_configurations_has_both_kinds_of_cases() -> None:
    """The others have tests of their own: of servers, NumPy, TensorRT, and folders that say it by their names."""
    elsewhere = {rule.id for rule in SERVER_CHECKS} | {"numpy-2-stub", "plan-of-another-tensorrt"}
    elsewhere |= {"model-in-two-folders"}
    elsewhere |= {"misread-version-folder", "not-a-model", "empty-version"}
    wanted = {rule.id for rule in RULES} - elsewhere
    assert {case.rule for case in CASES if case.fires} == wanted
    assert {case.rule for case in CASES if not case.fires} == wanted


def test_rules_are_named_once_and_advise() -> None:
    assert len({rule.id for rule in RULES}) == len(RULES)
    assert all(rule.why.endswith(".") and rule.fix.endswith(".") for rule in RULES)


def test_a_rule_for_other_triton_versions_is_left_out(found: Found, tmp_path: Path) -> None:
    case = CASES[0]
    assert found(case)
    ids = {
        version: {one.rule.id for one in diagnose([tmp_path], version=version).findings}
        for version in ((2, 68), (2, 69))
    }
    assert case.rule in ids[2, 68]
    assert case.rule not in ids[2, 69]
