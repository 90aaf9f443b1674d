"""Options -> the ASGI application."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from cmt_client.async_client import AsyncEmotionClient
from cmt_client.errors import EmotionError
from cmt_client.transport import AsyncTransport, connect_async
from cmt_gateway.door import TIMEOUT_HEADER, Door
from cmt_gateway.emotion import emotion_routes
from cmt_gateway.live.socket import live_routes
from cmt_gateway.metrics import Metrics
from cmt_gateway.options import GatewayOptions
from cmt_gateway.problems import Refused, refused
from cmt_gateway.service import service_routes
from cmt_pipeline import __version__
from cmt_pipeline.errors import InvalidInput
from cmt_session.policy_file import shipped_policies, shipped_policy

BROWSERS_MAY_SEND = (
    "authorization",
    "x-api-key",
    "content-type",
    "x-request-id",
    TIMEOUT_HEADER,
    "traceparent",
    "tracestate",
)


PAGE = Path(__file__).parent / "page"
#: The page runs what lies beside it and nothing else, and nobody may put it into a frame.
PAGE_POLICY = "; ".join(
    (
        "default-src 'self'",
        "connect-src 'self' ws: wss:",
        "img-src 'self' data: blob:",
        "media-src 'self' blob:",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    )
)


class Page(StaticFiles):
    """The files of the live page, `/`, and of the operator's, `/status`."""

    def lookup_path(self, path: str) -> tuple[str, os.stat_result | None]:
        return super().lookup_path("status.html" if path == "status" else path)

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Content-Security-Policy"] = PAGE_POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response


class Gateway:
    """The application, and the door before it. asgi: what a server runs; call `drain` before it stops."""

    def __init__(self, options: GatewayOptions, transport: AsyncTransport | None = None) -> None:
        """transport: instead of a connection to options.triton, for tests."""
        transport = transport or connect_async(options.triton)
        # Who is refused for too much load is told so at once, and comes again when it suits.
        client = AsyncEmotionClient(
            options.triton, timeout_s=options.max_timeout_s, retry_refused=False, transport=transport
        )
        metrics = Metrics()
        self.api = _api(client)
        self.door = Door(self.api, options, metrics)
        self.api.include_router(emotion_routes(client, options.ruling))
        policies = {name: shipped_policy(name) for name in shipped_policies()}
        self.api.include_router(live_routes(client, options, self.door, policies))
        self.api.include_router(service_routes(options, self.door, metrics, transport, policies))
        self.api.mount("/", Page(directory=PAGE, html=True))
        self.asgi: ASGIApp = self.door
        if options.origins:
            self.asgi = CORSMiddleware(
                self.door,
                allow_origins=options.origins,
                allow_methods=["GET", "POST"],
                allow_headers=BROWSERS_MAY_SEND,
                expose_headers=["x-request-id", "retry-after"],
            )

    def drain(self) -> None:
        """From now on nobody is let in; who is in is answered."""
        self.door.draining = True


def _api(client: AsyncEmotionClient) -> FastAPI:
    @contextlib.asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        await client.close()

    api = FastAPIOffline(
        title="Emotion from a face, a voice and a sentence",
        version=__version__,
        summary="A Cross-Modal Transformer on Triton, over plain HTTP.",
        docs_url="/docs",
        redoc_url=None,
        static_url="/docs-static",
        lifespan=life,
    )
    for kind in (Refused, InvalidInput, EmotionError, RequestValidationError, HTTPException, Exception):
        api.add_exception_handler(kind, _answered)
    return api


async def _answered(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        error = Refused(error.status_code, "http", str(error.detail))
    elif isinstance(error, RequestValidationError):
        error = Refused(422, "request", str(error.errors()[0].get("msg", error)))
    found = refused(error)
    with contextlib.suppress(AttributeError):
        request.state.said["code"] = found.code
    return found.response(getattr(request.state, "request_id", None))
