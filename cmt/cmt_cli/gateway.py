"""`cmt gateway`: the front door for applications; `cmt key`: who may come in."""

from __future__ import annotations

import contextlib
import logging
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from cmt_cli.state import DEFAULT_STATE, State, StateOption
from cmt_pipeline.constants import GATEWAY_PORT, LOOPBACK

LOG = logging.getLogger(__name__)

STEADY_S = 10.0  # a gateway that lives so long has started
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0


def gateway(
    triton: Annotated[
        str | None, typer.Option(envvar="CMT_TRITON_URL", help="The server behind; the one running here by default.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; others than loopback need --keys.")] = LOOPBACK,
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = GATEWAY_PORT,
    context: Annotated[
        str,
        typer.Option(
            envvar="CMT_CONTEXT",
            help="What it is used for: general, customer_service, education, workplace or medical. At work and in "
            "education face and voice are refused (EU AI Act, Article 5(1)(f)).",
        ),
    ] = "general",
    exemption: Annotated[
        str | None,
        typer.Option(envvar="CMT_EXEMPTION", help="An exception that is claimed: medical or safety."),
    ] = None,
    keys: Annotated[Path | None, typer.Option(envvar="CMT_KEYS", help="File of API keys, from `cmt key`.")] = None,
    anonymous: Annotated[
        bool, typer.Option("--anonymous", envvar="CMT_ANONYMOUS", help="Let in whoever can connect, without keys.")
    ] = False,
    rate: Annotated[
        str, typer.Option(envvar="CMT_RATE", help="Requests of one caller, as 600/minute or 20/second.")
    ] = "600/minute",
    rate_storage: Annotated[
        str,
        typer.Option(envvar="CMT_RATE_STORAGE", help="Where they are counted; redis://HOST for replicas."),
    ] = "memory",
    origin: Annotated[
        list[str] | None, typer.Option(help="Origin of pages that may ask from a browser; repeatable.")
    ] = None,
    audit: Annotated[
        Path | None, typer.Option(envvar="CMT_AUDIT", help="File of who asked for what, without content.")
    ] = None,
    tls_certificate: Annotated[Path | None, typer.Option(envvar="CMT_TLS_CERTIFICATE", help="PEM file.")] = None,
    tls_key: Annotated[Path | None, typer.Option(envvar="CMT_TLS_KEY", help="PEM file.")] = None,
    most_in_flight: Annotated[int, typer.Option(help="Requests answered at a time; more are refused at once.")] = 64,
    timeout_s: Annotated[float, typer.Option(help="Seconds of a request that names none in X-Timeout-Ms.")] = 5.0,
    header_timeout_s: Annotated[
        float, typer.Option(envvar="CMT_HEADER_TIMEOUT_S", help="Seconds that a request's head may take.")
    ] = 10.0,
    keep_alive_s: Annotated[
        float,
        typer.Option(envvar="CMT_KEEP_ALIVE_S", help="Seconds of an idle connection, more than a balancer's."),
    ] = 75.0,
    drain_delay_s: Annotated[
        float, typer.Option(help="Seconds from saying that it isn't ready until it stops, for balancers to see it.")
    ] = 0.0,
    drain_timeout_s: Annotated[float, typer.Option(help="Seconds that stopping waits for requests in flight.")] = 30.0,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Serves applications over HTTP and WebSockets until Ctrl-C: media in, one flat answer out.

    Its page /docs describes the interface. Nothing that people send is kept or logged.

    Example: [bold]cmt gateway --context customer_service --keys keys[/]
    """
    from cmt_gateway.app import Gateway
    from cmt_gateway.options import GatewayOptions
    from cmt_gateway.serving import listening, run
    from cmt_session.context import ruling

    options = GatewayOptions(
        triton=State(state).url(triton),
        host=host,
        port=port,
        ruling=ruling(context, exemption),
        keys=keys,
        anonymous=anonymous,
        rate=rate,
        rate_storage=rate_storage,
        origins=tuple(origin or ()),
        audit=audit,
        certificate=tls_certificate,
        certificate_key=tls_key,
        most_in_flight=most_in_flight,
        timeout_s=timeout_s,
        header_timeout_s=header_timeout_s,
        keep_alive_s=keep_alive_s,
        drain_delay_s=drain_delay_s,
        drain_timeout_s=drain_timeout_s,
    )
    door = Gateway(options)
    with listening(options) as on:
        scheme = "https" if tls_certificate else "http"
        LOG.info(f"gateway {scheme}://{host}:{on.getsockname()[1]} before {options.triton}; /docs describes it")
        run(options, door, on)


class GatewayProcess:
    """`cmt gateway` as a child, started again when it dies: after a second, and later where it dies at once."""

    def __init__(self, triton: str, port: int) -> None:
        self._command = [sys.executable, "-m", "cmt_cli.main", "gateway", "--triton", triton, "--port", str(port)]
        self._pause_s = FIRST_PAUSE_S
        self._again_at: float | None = None
        self._start()

    def _start(self) -> None:
        from cmt_server.child import start_child

        stack, _ = resource.getrlimit(resource.RLIMIT_STACK)
        self._process = start_child(self._command, {}, sys.stderr.fileno(), stack)
        self._started, self._again_at = time.monotonic(), None

    def look(self) -> None:
        """Call it now and then."""
        code, now = self._process.poll(), time.monotonic()
        if code is None:
            return
        if self._again_at is None:
            at_once = now - self._started < STEADY_S
            self._pause_s = min(LONGEST_PAUSE_S, 2 * self._pause_s) if at_once else FIRST_PAUSE_S
            self._again_at = now + self._pause_s
            LOG.warning(f"the gateway ended with exit code {code}; it is started again in {self._pause_s:g} s")
        elif now >= self._again_at:
            self._start()

    def stop(self) -> None:
        """What it let in is answered first."""
        self._process.terminate()
        self._process.wait()


@contextlib.contextmanager
def gateway_before(triton: str, port: int) -> Iterator[GatewayProcess]:
    """A gateway while the block runs."""
    child = GatewayProcess(triton, port)
    try:
        yield child
    finally:
        child.stop()


def key(
    name: Annotated[str, typer.Argument(help="Whose it is, for logs and limits.")],
    keys: Annotated[Path, typer.Option(envvar="CMT_KEYS", help="File that it is added to, hashed.")],
) -> None:
    """Makes an API key of the gateway and prints it, this once.

    To take it away, remove its line from the file.

    Example: [bold]cmt key shop --keys keys[/]
    """
    from cmt_gateway.keys import new_key

    typer.echo(new_key(keys, name))
