"""The ports that a server is to listen on: free ones chosen, taken ones told apart before anything starts."""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import socket
from collections.abc import Mapping, Sequence

from cmt_server.errors import ServerError

NAME_TIMEOUT_S = 1.0
MAX_ANSWER_BYTES = 1 << 16

REASONS = {
    errno.EADDRINUSE: "another process listens there; stop it, or choose another port (0 takes a free one)",
    errno.EACCES: "this user may not listen there; choose one from 1024 up",
    errno.EADDRNOTAVAIL: "the address isn't one of this machine",
}


def ports_for(host: str, wanted: Sequence[int]) -> list[int]:
    """The ports wanted, with a free one for each 0; found together, so that none is given twice.

    Raises ServerError for a host that this machine can't listen on.
    """
    with contextlib.ExitStack() as stack:
        ports = []
        for port in wanted:
            if port == 0:
                listener = stack.enter_context(socket.socket())
                _bind(listener, host, 0, "a port")
                port = listener.getsockname()[1]
            ports.append(port)
    return ports


def check_free(host: str, ports: Mapping[str, int]) -> None:
    """Raises ServerError for a port (name -> number) that somebody listens on, or that this user may not take."""
    for name, port in ports.items():
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Triton: what just closed is free
            _bind(listener, host, port, f"{name} port {port}")


def _bind(listener: socket.socket, host: str, port: int, what: str) -> None:
    try:
        listener.bind((host, port))
    except OSError as error:
        reason = REASONS.get(error.errno or 0, str(error))
        raise ServerError(f"{what} of {host} can't be had: {reason}") from error


def server_name(host: str, port: int) -> str | None:
    """What a Triton on this port calls itself (its --id); "" for something else that answers, None for nothing."""
    connection = http.client.HTTPConnection(host, port, timeout=NAME_TIMEOUT_S)
    try:
        connection.request("GET", "/v2")
        told = json.loads(connection.getresponse().read(MAX_ANSWER_BYTES))
        return str(told["name"])
    except OSError:
        return None
    except (http.client.HTTPException, ValueError, KeyError, TypeError):
        return ""
    finally:
        connection.close()
