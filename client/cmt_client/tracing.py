"""Request ids and W3C trace context: what ties a call to a server's log and trace.

Format: https://www.w3.org/TR/trace-context/. Triton's OpenTelemetry mode reads `traceparent` and
`tracestate` from HTTP headers and from gRPC metadata.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Mapping


def new_request_id() -> str:
    return uuid.uuid4().hex


def request_headers(given: Mapping[str, str] | None) -> dict[str, str]:
    """The headers given, and the trace context of the current OpenTelemetry span unless they have one.

    OpenTelemetry is never imported here: where nobody has loaded it, no span is current.
    """
    headers = {name.lower(): value for name, value in (given or {}).items()}
    if "traceparent" not in headers and "opentelemetry.trace" in sys.modules:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        TraceContextTextMapPropagator().inject(headers)
    return headers
