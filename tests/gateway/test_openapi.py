"""What the OpenAPI page promises, tried by generated requests: nothing breaks, every answer is one that it lists."""

from __future__ import annotations

import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from cmt_client.fake import AsyncFakeTransport
from cmt_gateway.app import Gateway
from cmt_gateway.options import GatewayOptions

GATEWAY = Gateway(GatewayOptions(rate="1000000/second"), AsyncFakeTransport())
schema = schemathesis.openapi.from_asgi("/openapi.json", GATEWAY.asgi)
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@schema.parametrize()
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_generated_requests_are_answered_as_described(case: schemathesis.Case) -> None:
    case.call_and_validate(checks=CHECKS)
