"""Rules, dashboard and autoscaling against the real promtool, and the metrics of a real server and its gateway."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from cmt_client import EmotionClient, InvalidInput
from cmt_pipeline.pipelines import PIPELINES, candidate_of
from cmt_pipeline.stages import STAGES
from cmt_server.server import TritonServer
from monitoring import RULES, adapter_rule, expressions, groups, panels, rules
from rendering import one, rendered

PROMTOOL = shutil.which("promtool")
ALERT_TESTS = Path(__file__).with_name("alerts.yaml")

#: Metrics that Triton doesn't make, and whose they are.
FOREIGN = {
    "up": "Prometheus",
    "kube_deployment_status_replicas_available": "kube-state-metrics",
    "kube_deployment_spec_replicas": "kube-state-metrics",
    "container_memory_working_set_bytes": "the kubelet",
    "container_spec_memory_limit_bytes": "the kubelet",
    "container_cpu_usage_seconds_total": "the kubelet",
}
#: Triton's, where it sees a GPU: names as its documentation gives them, not seen here.
ON_A_GPU = {"nv_gpu_utilization", "nv_gpu_memory_used_bytes", "nv_gpu_memory_total_bytes"}
#: What Prometheus adds to a pod's metrics.
TARGET_LABELS = {"namespace", "pod", "container", "cmt_track"}
OTHER_LABELS = TARGET_LABELS | {"gpu_uuid"}


def metrics_in(expression: str) -> set[str]:
    """Names that stand where a metric does: before a selector, a bracket, an operator or the end."""
    bare = re.sub(r'"[^"]*"', '""', re.sub(r"\b(by|on|without|group_left)\s*\([^)]*\)", "", expression))
    bare = re.sub(r"\{[^}]*\}", "{}", bare)
    found = re.findall(r"[a-z_:][a-z0-9_:]*(?![a-z0-9_:(\s]*\()", bare)
    return {name for name in found if re.search("[_:]", name) or name == "up"} - {"avg_over_time"}


@pytest.fixture(scope="module")
def metrics(server: TritonServer, front_door: str) -> dict[str, set[str]]:
    """What a real server and its gateway tell after requests and refused ones: metric -> its lines."""
    with EmotionClient(server.grpc_url, retries=0) as client:
        client.predict(text="Hello?")
        with pytest.raises(InvalidInput):
            client.predict(image=b"no image")
    found: dict[str, set[str]] = {}
    for line in (*_scraped(_address(server)), *_scraped(front_door)):
        found.setdefault(re.split(r"[{ ]", line)[0], set()).add(line)
    return found


def _address(server: TritonServer) -> str:
    return f"http://127.0.0.1:{server.metrics_port}"


def _scraped(address: str) -> Iterator[str]:
    with urllib.request.urlopen(f"{address}/metrics", timeout=10) as response:
        yield from (line for line in response.read().decode().splitlines() if not line.startswith("#"))


@pytest.mark.long
@pytest.mark.parametrize("where", expressions())
def test_every_metric_named_is_one_that_the_server_gives(metrics: dict[str, set[str]], where: str) -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    named = metrics_in(expressions()[where])
    assert named
    assert named <= metrics.keys() | recorded | FOREIGN.keys() | ON_A_GPU


def unknown_labels(expression: str, metrics: dict[str, set[str]]) -> set[str]:
    """Labels that an expression selects or keeps and that none of its metrics has."""
    known = {name: {label for line in lines for label in _name_and_labels(line)[1]} for name, lines in metrics.items()}
    recorded = {rule["record"]: rule["expr"] for rule in rules() if "record" in rule}

    def labels_of(names: set[str]) -> set[str]:
        beneath = [labels_of(metrics_in(recorded[name])) for name in names & recorded.keys()]
        return OTHER_LABELS.union(*beneath, *(known.get(name, set()) for name in names))

    kept = re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expression)
    found = {label for words in kept for label in re.findall(r"\w+", words)} - labels_of(metrics_in(expression))
    for name, matchers in re.findall(r"([a-z_:]+)\{([^}]*)\}", expression):
        if name not in FOREIGN:
            found |= set(re.findall(r"(\w+)\s*[=!]", matchers)) - labels_of({name})
    return found


@pytest.mark.parametrize("where", expressions())
def test_every_label_named_is_one_that_its_metric_has(metrics: dict[str, set[str]], where: str) -> None:
    assert unknown_labels(expressions()[where], metrics) == set()


def test_a_label_that_isnt_there_would_be_found(metrics: dict[str, set[str]]) -> None:
    for expression, wrong in (
        ('sum by (le) (rate(cmt_gateway_turn_seconds_bucket{route="/v1/emotion"}[5m]))', {"route"}),
        ("sum by (status) (cmt_gateway_faults_total)", {"status"}),
        ("sum by (status) (cmt:gateway_fault_ratio:rate5m)", set()),
        ("sum by (policy) (cmt:gateway_fault_ratio:rate5m)", {"policy"}),
    ):
        assert unknown_labels(expression, metrics) == wrong


def test_a_metric_that_isnt_there_would_be_found(metrics: dict[str, set[str]]) -> None:
    for name in ("nv_inference_queue_seconds", "nv_inference_request_latency"):
        assert metrics_in(f'sum by (pod, model) (rate({name}{{model=~"a"}}[5m])) / 2 > 0') == {name}
        assert name not in metrics


def test_stages_and_pipelines_are_those_of_the_contract(metrics: dict[str, set[str]]) -> None:
    """Each query means all stages, or all pipelines; `emotion.*` isn't a stage, nor the other way round."""
    served = {
        found[1] for line in metrics["nv_inference_request_success"] if (found := re.search('model="(.*?)"', line))
    }
    assert served == set(STAGES) | set(PIPELINES)
    for where, expression in expressions().items():
        for pattern in re.findall(r'model=~"(.*?)"', expression):
            assert {name for name in served if re.fullmatch(pattern, name)} in (set(STAGES), set(PIPELINES)), where
            if "emotion" in pattern and where.startswith("rule"):  # the faults of a release on trial are faults, too
                assert re.fullmatch(pattern, candidate_of("emotion_text")), where


def test_a_refused_request_is_two_failures_of_its_pipeline_and_none_of_a_stage(server: TritonServer) -> None:
    """Why the rules halve failures and can't tell refused inputs from broken stages."""

    def failures() -> dict[str, float]:
        lines = [line for line in _scraped(_address(server)) if line.startswith("nv_inference_request_failure")]
        counted = {(m[1], m[2]): float(line.split()[-1]) for line in lines if (m := _labels(line))}
        return {f"{model} {reason}": count for (model, reason), count in counted.items()}

    before = failures()
    with EmotionClient(server.grpc_url, retries=0) as client:
        for _ in range(3):
            with pytest.raises(InvalidInput):
                client.predict(image=b"no image", text="Hello?")
    for _ in range(100):  # Triton counts a failure after it has told it
        after = failures()
        changed = {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)}
        if sum(changed.values()) >= 6:
            break
        time.sleep(0.05)
    assert changed == {"emotion_image_text OTHER": 6}


def _labels(line: str) -> re.Match[str] | None:
    return re.search(r'model="(.*?)",reason="(.*?)"', line)


def test_the_series_that_alerts_are_tried_with_are_like_the_servers_own(metrics: dict[str, set[str]]) -> None:
    """With the labels that Triton gives them, and the version that it gives every ensemble."""
    series = {
        each["series"] for test in yaml.safe_load(ALERT_TESTS.read_text())["tests"] for each in test["input_series"]
    }
    for one_series in series:
        name, labels = _name_and_labels(one_series)
        if name in FOREIGN:
            continue
        own = {key: value for key, value in labels.items() if key not in TARGET_LABELS}
        assert any(own.keys() == _name_and_labels(line)[1].keys() for line in metrics[name]), one_series
        if own.get("model") in PIPELINES:
            assert own["version"] == "1", one_series


def _name_and_labels(series: str) -> tuple[str, dict[str, str]]:
    name, _, labels = series.partition("{")
    return name, dict(re.findall(r'(\w+)="([^"]*)"', labels))


def test_accepted_requests_name_the_release_that_answers(server: TritonServer, metrics: dict[str, set[str]]) -> None:
    with EmotionClient(server.grpc_url) as client:
        answer = client.predict(text="Hello?")
    line = f'cmt_accepted_total{{pipeline="emotion_text",release="{answer.release}"}}'
    assert any(found.startswith(line) for found in metrics["cmt_accepted_total"])
    (loaded,) = metrics["cmt_release_loaded"]
    assert loaded.endswith(" 1")
    assert f'digest="{answer.digest}"' in loaded


@pytest.mark.parametrize(("where", "name"), RULES.items())
def test_what_an_autoscaler_asks_for_is_what_the_adapter_gives(where: str, name: str) -> None:
    (metric,) = one(rendered(where), "HorizontalPodAutoscaler", name)["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == adapter_rule(name)["name"]["as"]


def test_both_autoscalers_keep_to_the_same() -> None:
    (metric,) = one(rendered("cpu, HPA"), "HorizontalPodAutoscaler", "cmt-triton")["spec"]["metrics"]
    threshold = one(rendered("gpu, KEDA"), "ScaledObject", "cmt-triton")["spec"]["triggers"][0]["metadata"]["threshold"]
    assert threshold == metric["pods"]["target"]["averageValue"]


def test_every_panel_has_a_place_and_a_unit() -> None:
    places = {(p["gridPos"]["x"], p["gridPos"]["y"]) for p in panels()}
    assert len(places) == len({p["id"] for p in panels()}) == len(panels())
    assert all(panel["fieldConfig"]["defaults"]["unit"] for panel in panels() if panel["type"] != "row")


needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool isn't installed: Debian's package prometheus")


def promtool(*arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(PROMTOOL), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


@needs_promtool
def test_promtool_accepts_the_rules_and_every_query(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(groups()))
    queries = [{"record": f"query:{n}", "expr": each} for n, each in enumerate(expressions().values())]
    (tmp_path / "queries.yaml").write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": queries}]}))
    checked = promtool("check", "rules", "rules.yaml", "queries.yaml", folder=tmp_path)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(rules())} rules found" in checked.stdout
    assert f"{len(queries)} rules found" in checked.stdout


@needs_promtool
def test_alerts_fire_when_they_should_and_not_before(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(groups()))
    shutil.copy(ALERT_TESTS, tmp_path)
    tested = promtool("test", "rules", ALERT_TESTS.name, folder=tmp_path)
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert {rule["alert"] for rule in rules() if "alert" in rule} == {
        case["alertname"]
        for test in yaml.safe_load(ALERT_TESTS.read_text())["tests"]
        for case in test["alert_rule_test"]
    }


@needs_promtool
def test_an_alert_that_doesnt_fire_would_be_found(tmp_path: Path) -> None:
    text = yaml.safe_dump(groups()).replace("cmt:fault_ratio:rate5m > 0.01", "cmt:fault_ratio:rate5m > 0.6")
    (tmp_path / "rules.yaml").write_text(text)
    shutil.copy(ALERT_TESTS, tmp_path)
    tested = promtool("test", "rules", ALERT_TESTS.name, folder=tmp_path)
    assert tested.returncode != 0
    assert "CmtFaults" in tested.stdout + tested.stderr
