"""Rules, alerts and queries of k8s/, as they are rendered. What these functions return isn't to be changed."""

from __future__ import annotations

import functools
import json
import re
from typing import Any

import yaml

from rendering import one, rendered

#: Rules: what they are rendered with -> their name.
RULES = {"cpu, HPA": "cmt-triton", "cpu, front door": "cmt-front-door"}
#: Values that Grafana and prometheus-adapter put in for their own words.
FILLED_IN = {
    "$__rate_interval": "5m",
    "$namespace": "cmt",
    "<<.LabelMatchers>>": 'namespace="cmt"',
    "<<.GroupBy>>": "pod",
}


@functools.cache
def groups() -> dict[str, Any]:
    """All rules in one file, as Prometheus reads them."""
    found = [one(rendered(where), "PrometheusRule", name)["spec"]["groups"] for where, name in RULES.items()]
    return {"groups": [group for each in found for group in each]}


def rules() -> list[dict[str, Any]]:
    return [rule for group in groups()["groups"] for rule in group["rules"]]


@functools.cache
def panels() -> list[dict[str, Any]]:
    dashboard = json.loads(one(rendered("cpu, HPA"), "ConfigMap", "cmt-triton-dashboard")["data"]["cmt-triton.json"])
    return list(dashboard["panels"])


@functools.cache
def expressions() -> dict[str, str]:
    """Every query in k8s/, by where it stands, as PromQL."""
    found = {f"rule {rule.get('record') or rule['alert']}": rule["expr"] for rule in rules()}
    for panel in panels():
        for target in panel.get("targets", ()):
            found[f"panel {panel['title']} {target['refId']}"] = target["expr"]
    scaled = one(rendered("gpu, KEDA"), "ScaledObject", "cmt-triton")
    found["KEDA"] = scaled["spec"]["triggers"][0]["metadata"]["query"]
    for name in RULES.values():
        rule = adapter_rule(name)
        metric = re.split(r"[{ ]", rule["seriesQuery"])[0]
        found[f"prometheus-adapter {name}"] = rule["metricsQuery"].replace("<<.Series>>", metric)
    for word, value in FILLED_IN.items():
        found = {where: expression.replace(word, value) for where, expression in found.items()}
    return found


def adapter_rule(of: str = "cmt-triton") -> dict[str, Any]:
    where = next(where for where, name in RULES.items() if name == of)
    config = one(rendered(where), "ConfigMap", f"{of}-adapter-rules")["data"]["config.yaml"]
    (rule,) = yaml.safe_load(config)["rules"]
    return dict(rule)
