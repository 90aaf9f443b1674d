"""The shapes of the custom resources that k8s/ uses, as JSON schemas.

Written from their documentation, of the fields that are used here alone, so that a misspelt field fails: the schemas
that come with kubernetes-validate know Kubernetes' own kinds.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string", "minLength": 1}
COUNT: Schema = {"type": "integer", "minimum": 0}
DURATION: Schema = {"type": "string", "pattern": r"^\d+(ms|s|m|h)$"}
TEXTS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}


def shape(required: dict[str, Schema], **optional: Schema) -> Schema:
    return {
        "type": "object",
        "required": list(required),
        "properties": required | optional,
        "additionalProperties": False,
    }


def several(item: Schema) -> Schema:
    return {"type": "array", "minItems": 1, "items": item}


def _route(match: Schema) -> Schema:
    backend = shape({"name": TEXT, "port": {"type": "integer"}})
    rule = shape({"matches": several(match), "backendRefs": several(backend)})
    return shape({"parentRefs": several(shape({"name": TEXT})), "rules": several(rule)}, hostnames=several(TEXT))


POLICIES = shape(
    {"policies": several(shape({"type": {"enum": ["Pods", "Percent"]}, "value": COUNT, "periodSeconds": COUNT}))},
    stabilizationWindowSeconds=COUNT,
    selectPolicy={"enum": ["Max", "Min", "Disabled"]},
)
RECORD = shape({"record": {"type": "string", "pattern": "^[a-z_:0-9]+$"}, "expr": TEXT}, labels=TEXTS)
ALERT = shape(
    {
        "alert": {"type": "string", "pattern": "^[A-Z][A-Za-z]+$"},
        "expr": TEXT,
        "for": DURATION,
        "labels": shape({"severity": {"enum": ["critical", "warning"]}}),
        "annotations": shape({"summary": TEXT, "description": TEXT}),
    }
)
TRIGGER = shape(
    {
        "type": {"const": "prometheus"},
        "metricType": {"const": "AverageValue"},
        "metadata": shape({"serverAddress": TEXT, "query": TEXT, "threshold": {"type": "string"}}),
    }
)

#: apiVersion and kind -> its spec.
SPECS: dict[tuple[str, str], Schema] = {
    ("monitoring.coreos.com/v1", "PodMonitor"): shape(
        {
            "selector": shape({"matchLabels": TEXTS}),
            "podMetricsEndpoints": several(
                shape({"port": TEXT, "path": TEXT}, interval=DURATION, scrapeTimeout=DURATION)
            ),
        },
        podTargetLabels=several(TEXT),
    ),
    ("monitoring.coreos.com/v1", "PrometheusRule"): shape(
        {"groups": several(shape({"name": TEXT, "rules": several({"oneOf": [RECORD, ALERT]})}))}
    ),
    ("keda.sh/v1alpha1", "ScaledObject"): shape(
        {
            "scaleTargetRef": shape({"name": TEXT}, apiVersion=TEXT, kind=TEXT),
            "minReplicaCount": COUNT,
            "maxReplicaCount": COUNT,
            "triggers": several(TRIGGER),
        },
        pollingInterval=COUNT,
        fallback=shape({"failureThreshold": COUNT, "replicas": COUNT}),
        advanced=shape(
            {"horizontalPodAutoscalerConfig": shape({"behavior": shape({"scaleUp": POLICIES, "scaleDown": POLICIES})})}
        ),
    ),
    ("gateway.networking.k8s.io/v1", "GRPCRoute"): _route(shape({"method": shape({"service": TEXT, "method": TEXT})})),
    ("gateway.networking.k8s.io/v1", "HTTPRoute"): _route(
        shape({"path": shape({"type": {"enum": ["PathPrefix", "Exact"]}, "value": TEXT})})
    ),
}
