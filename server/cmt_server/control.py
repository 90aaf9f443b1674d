"""Triton's HTTP control calls that running a server needs, over the standard library alone."""

from __future__ import annotations

import http.client
import json
from typing import Any

from cmt_pipeline.constants import CONTROL_HEADER
from cmt_server.errors import ServerError

TIMEOUT_S = 10.0
LOAD_TIMEOUT_S = 300.0
POLL_S = 0.02


class ControlApi:
    """Readiness, index, loading and unloading of one server."""

    def __init__(self, host: str, port: int, token: str) -> None:
        self._host, self._port, self._token = host, port, token

    def model_ready(self, name: str) -> bool:
        try:
            status, _ = self._call("GET", f"/v2/models/{name}/ready")
        except OSError:
            return False
        return status == http.client.OK

    def index(self) -> list[dict[str, Any]]:
        """One entry a model version: name, version, state, reason."""
        status, body = self._call("POST", "/v2/repository/index")
        if status != http.client.OK:
            raise ServerError(f"the repository index answered with status {status}: {body[:200]!r}")
        entries: list[dict[str, Any]] = json.loads(body)
        return entries

    def load(self, name: str) -> None:
        """Loads a model or brings it up to date; back when it is ready. Raises ServerError."""
        status, body = self._call("POST", f"/v2/repository/models/{name}/load", b"{}", LOAD_TIMEOUT_S)
        if status != http.client.OK:
            raise ServerError(f"{name} can't be loaded: {body[:500].decode(errors='replace')}")

    def _call(
        self, method: str, path: str, body: bytes | None = None, timeout_s: float = TIMEOUT_S
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)
        try:
            connection.request(method, path, body, {CONTROL_HEADER: self._token})
            response = connection.getresponse()
            return response.status, response.read()
        except http.client.HTTPException as error:
            raise ConnectionError(str(error)) from error
        finally:
            connection.close()
