"""Bodies that ended a Triton 2.51 with the usual stack, sent again and again to a server as `cmt serve` runs it.

`make bench-hostile` writes perf/results/hostile.json: of each body, how many were sent, what was answered, how often
the server died, its memory and address space.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cmt_perf.conditions import conditions, to_text
from cmt_release.release import open_release
from cmt_server.child import stack_bytes
from cmt_server.errors import ServerError
from cmt_server.repository import Repository
from cmt_server.server import ServerOptions, TritonServer

FORM = "application/x-www-form-urlencoded"
TIMEOUT_S = 120.0
BLOCK_BYTES = 1 << 16
INFER = "/v2/models/emotion/infer"


@dataclass(frozen=True)
class Hostile:
    """A body of so many MB to a path, of one content type; in chunks of chunk_bytes where that isn't 0."""

    name: str
    path: str
    megabytes: float = 5
    content_type: str = FORM
    chunk_bytes: int = 0
    fill: bytes = b"\0"

    def __str__(self) -> str:
        return self.name

    @property
    def bytes(self) -> int:
        return int(self.megabytes * 1e6)


FORMS = (
    Hostile("form to a path that takes none", "/v2/health/live"),
    Hostile("form to a pipeline", INFER),
    Hostile("form of escapes", INFER, fill=b"%41"),
    Hostile("chunks of one byte", INFER, content_type="application/json", chunk_bytes=1),
    Hostile("form in chunks of one byte", INFER, chunk_bytes=1),
)


def send(url: str, what: Hostile) -> int:
    """Status of the answer; 0 where the connection broke."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=TIMEOUT_S)
    try:
        connection.putrequest("POST", what.path)
        connection.putheader("Content-Type", what.content_type)
        if what.chunk_bytes:
            connection.putheader("Transfer-Encoding", "chunked")
        else:
            connection.putheader("Content-Length", str(what.bytes))
        connection.endheaders()
        for block in _blocks(what):
            connection.send(block)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def _blocks(what: Hostile) -> Iterator[bytes]:
    """The body as it goes over the wire."""
    fill = what.fill * (BLOCK_BYTES // len(what.fill))
    if not what.chunk_bytes:
        for _ in range(what.bytes // len(fill)):
            yield fill
        yield (fill + fill)[: what.bytes % len(fill)]
        return
    chunk = b"%x\r\n%s\r\n" % (what.chunk_bytes, (fill)[: what.chunk_bytes])
    chunks, at_once = what.bytes // what.chunk_bytes, BLOCK_BYTES // len(chunk)
    for _ in range(chunks // at_once):
        yield chunk * at_once
    yield chunk * (chunks % at_once) + b"0\r\n\r\n"


SIZES_MB = (5.0, 20.0, 60.0)
TIMES = 200
RESULT = Path("perf/results/hostile.json")


def bodies() -> Iterator[Hostile]:
    """What is sent: forms and chunked bodies of each size; of one-byte chunks, whose cost is their number, less."""
    for form in FORMS[:2]:
        for megabytes in SIZES_MB:
            yield replace(form, megabytes=megabytes)
    for megabytes in SIZES_MB:
        yield Hostile("form in chunks of 1 kB", INFER, megabytes, chunk_bytes=1000)
    for chunked in FORMS[3:]:
        for megabytes in (0.2, 1.0):
            yield replace(chunked, megabytes=megabytes)


def repeat(server: TritonServer, what: Hostile, times: int) -> dict[str, Any]:
    """A row: of one body sent again and again, what came of it. The server is started again if it died."""
    answers: Counter[int] = Counter()
    deaths = 0
    for _ in range(times):
        answers[send(server.http_url, what)] += 1
        try:
            server.check()
        except ServerError:
            deaths += 1
            server.stop(drain=False)
            server.start()
    told = asdict(what) | {"fill": what.fill.decode("latin-1"), "times": times, "deaths": deaths}
    return told | {"answers": {str(status): count for status, count in sorted(answers.items())}} | memory(server)


def memory(server: TritonServer) -> dict[str, float]:
    """Of the server's process, in MiB: resident now, resident at most, address space; and its threads."""
    lines = (line.split(":", 1) for line in Path(f"/proc/{server.pid}/status").read_text().splitlines())
    status = {name: value.split()[0] for name, value in lines if value.split()}
    names = {"VmRSS": "resident_mib", "VmHWM": "most_resident_mib", "VmSize": "address_space_mib"}
    found: dict[str, float] = {told: round(int(status[name]) / 1024, 1) for name, told in names.items()}
    return found | {"threads": int(status["Threads"])}


def main() -> None:
    """The trial on the newest release of a state folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("state", type=Path)
    parser.add_argument("--times", type=int, default=TIMES)
    parser.add_argument("--result", type=Path, default=RESULT)
    asked = parser.parse_args()
    release = open_release(asked.state / "releases")
    with tempfile.TemporaryDirectory(prefix="cmt-hostile-") as folder:
        repository = Path(folder, "repository")
        Repository(repository).install(release)
        options = ServerOptions(repository, Path(folder, "server"), http_port=0, grpc_port=0, metrics_port=0)
        with TritonServer(options) as server:
            idle = memory(server)
            rows = []
            for what in bodies():
                rows.append(repeat(server, what, asked.times))
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    stack, lessened = stack_bytes()
    told = {"stack_bytes": stack, "stack_lessened": lessened, "idle": idle, "bodies": rows}
    asked.result.write_text(to_text({"conditions": conditions(release), **told}))
    sys.exit(1 if any(row["deaths"] for row in rows) else 0)


if __name__ == "__main__":
    main()
