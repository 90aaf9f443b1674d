"""What operators and pages ask: is it alive, is it ready, what does it count, what may be sent."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response

from cmt_client.errors import EmotionError
from cmt_client.operations import GetModelConfig, ModelReady
from cmt_client.result import release_of
from cmt_client.transport import AsyncTransport
from cmt_gateway.door import Door
from cmt_gateway.metrics import CONTENT_TYPE, Metrics
from cmt_gateway.options import GatewayOptions
from cmt_pipeline.pipelines import pipeline_name

ASK_S = 1.0
READY = "ready"
TEXT_PIPELINE = pipeline_name(["text"])  # the least that a release answers


class Service(BaseModel):
    """What this deployment is for."""

    context: str
    modalities: list[str] = Field(description="Those that may be sent.")
    reason: str
    notice: str = Field(description="What a person has to be told before a face or a voice is read; empty for nothing.")
    policies: list[str] = Field(description="That a live session may name.")
    max_body_bytes: int
    timeout_ms: int


def service_routes(
    options: GatewayOptions, door: Door, metrics: Metrics, transport: AsyncTransport, policies: Collection[str]
) -> APIRouter:
    router = APIRouter(tags=["service"])

    @router.get("/v1/service")
    async def service() -> Service:
        """What may be sent, and what people have to be told first."""
        ruling = options.ruling
        return Service(
            context=ruling.rule.context,
            modalities=list(ruling.modalities),
            reason=ruling.reason,
            notice=ruling.notice(),
            policies=sorted(policies),
            max_body_bytes=options.max_body_bytes,
            timeout_ms=round(1000 * options.timeout_s),
        )

    @router.get("/livez")
    async def livez() -> dict[str, str]:
        """200 while the process answers."""
        return {"status": "alive"}

    @router.get("/readyz", responses={503: {"description": "Draining, or Triton isn't ready."}})
    async def readyz() -> Response:
        """200 when a request would be let in and Triton has a release, which is named."""
        found = {"status": "draining"} if door.draining else await _asked(transport)
        return JSONResponse(found, 200 if found["status"] == READY else 503)

    @router.get("/metrics", include_in_schema=False)
    async def counted() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    return router


async def _asked(transport: AsyncTransport) -> dict[str, Any]:
    try:
        return await asyncio.wait_for(_served(transport), ASK_S)
    except (EmotionError, asyncio.TimeoutError):
        return {"status": "triton can't be reached"}


async def _served(transport: AsyncTransport) -> dict[str, Any]:
    if not await transport.call(ModelReady(TEXT_PIPELINE), ASK_S):
        return {"status": "no release is ready"}
    release = release_of(await transport.call(GetModelConfig(TEXT_PIPELINE), ASK_S))
    return {"status": READY, **({"release": release.release, "digest": release.digest} if release else {})}
