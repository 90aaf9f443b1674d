"""python fake_gateway.py PORT: a gateway before a server that isn't there, as a process."""

import sys
from dataclasses import replace

from cmt_client.fake import FAKE_RELEASE, AsyncFakeTransport, FakeTransport
from cmt_gateway.app import Gateway
from cmt_gateway.options import GatewayOptions
from cmt_gateway.serving import listening, run

options = GatewayOptions(port=int(sys.argv[1]))
with listening(options) as on:
    print(on.getsockname()[1], flush=True)
    run(options, Gateway(options, AsyncFakeTransport(FakeTransport(replace(FAKE_RELEASE, trained=True)))), on)
