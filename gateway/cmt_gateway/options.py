"""What a gateway is told when it starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cmt_gateway.rates import IN_MEMORY
from cmt_pipeline.constants import GATEWAY_PORT, GRPC_PORT, LOOPBACK, MIB
from cmt_session.context import Ruling, ruling


@dataclass(frozen=True)
class GatewayOptions:
    """triton: URL of the server behind. keys: file of those who may ask (see `keys`); None lets everybody, on loopback.
    rate: requests of one caller, as `limits` writes them; rate_storage: where they are counted (`redis://…` for several
    replicas together). origins: of pages that may ask from a browser. audit: file of what was decided, without
    any content.

    ValueError for what can't be served.
    """

    triton: str = f"grpc://{LOOPBACK}:{GRPC_PORT}"
    host: str = LOOPBACK
    port: int = GATEWAY_PORT
    ruling: Ruling = field(default_factory=lambda: ruling("general"))
    keys: Path | None = None
    anonymous: bool = False
    rate: str = "600/minute"
    rate_storage: str = IN_MEMORY
    origins: tuple[str, ...] = ()
    audit: Path | None = None
    certificate: Path | None = None
    certificate_key: Path | None = None
    most_in_flight: int = 64
    most_sessions: int = 100
    socket_idle_s: float = 60.0  # that a live session may be without a message
    max_body_bytes: int = 32 * MIB
    max_held_bytes: int = 256 * MIB  # of the bodies of all requests together
    header_timeout_s: float = 10.0
    body_timeout_s: float = 20.0
    keep_alive_s: float = 75.0  # longer than a balancer keeps an idle connection: it must be the one that closes it
    timeout_s: float = 5.0  # of a request that names no deadline, from when it came
    max_timeout_s: float = 60.0
    drain_delay_s: float = 0.0  # from "not ready" until no more are let in, for balancers to see it
    drain_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        if self.keys is None and not self.anonymous and self.host != LOOPBACK:
            raise ValueError(
                f"got host {self.host} and no keys; expected --keys FILE, or --anonymous to let in whoever can connect"
            )
        if (self.certificate is None) != (self.certificate_key is None):
            raise ValueError("TLS: expected both a certificate and its key")
        times = ("header_timeout_s", "body_timeout_s", "keep_alive_s", "timeout_s")
        for name in ("most_in_flight", "max_body_bytes", *times):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: got {getattr(self, name)}; expected above 0")
