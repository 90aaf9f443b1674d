"""A small server that speaks as much of Hugging Face's hub as its own client asks for: revisions, files, refusals.

As `huggingface_hub` 1.x asks: GET /api/models/ID/revision/REVISION, GET /api/models/ID/tree/COMMIT, then HEAD and GET
/ID/resolve/COMMIT/FILE.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

API = re.compile(r"/api/models/([^/]+/[^/?]+)(?:/revision/([^/?]+))?(?:\?.*)?$")
TREE = re.compile(r"/api/models/([^/]+/[^/]+)/tree/([^/?]+)")
JSON = {"Content-Type": "application/json"}
FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/([^?]+)")


@dataclass
class Repository:
    """folder: its files; refused: status and error code of every answer, such as (403, "GatedRepo"); cut: files of
    which half is sent."""

    folder: Path
    branch: str = "main"
    refused: tuple[int, str] | None = None
    cut: set[str] = field(default_factory=set)

    @property
    def commit(self) -> str:
        """It changes as its files do."""
        digest = hashlib.sha1(usedforsecurity=False)
        for path in _files(self):
            digest.update(path.name.encode() + path.read_bytes())
        return digest.hexdigest()


class Hub:
    """A context manager; `asked` holds each request's path."""

    def __init__(self, repositories: dict[str, Repository]) -> None:
        self.repositories = repositories
        self.asked: list[str] = []

    def __enter__(self) -> Hub:
        hub = self

        class Handler(_Handler):
            repositories, asked = hub.repositories, hub.asked

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _files(repository: Repository) -> list[Path]:
    return sorted(path for path in repository.folder.rglob("*") if path.is_file())


def _entry(folder: Path, path: Path) -> dict[str, Any]:
    oid = hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest()
    return {"type": "file", "path": path.relative_to(folder).as_posix(), "size": path.stat().st_size, "oid": oid}


class _Handler(BaseHTTPRequestHandler):
    repositories: dict[str, Repository]
    asked: list[str]
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, body: bool) -> None:
        self.asked.append(self.path)
        found = API.match(self.path) or TREE.match(self.path) or FILE.match(self.path)
        repository = self.repositories.get(found[1]) if found else None
        if found is None or repository is None:
            self._send(404, b"{}", body, {"X-Error-Code": "RepoNotFound"})
        elif repository.refused:
            status, code = repository.refused
            self._send(status, b'{"error": "refused"}', body, {"X-Error-Code": code})
        elif (found[2] or repository.branch) not in (repository.branch, repository.commit):
            self._send(404, b'{"error": "no such revision"}', body, {"X-Error-Code": "RevisionNotFound"})
        elif found.re is API:
            self._send(200, json.dumps({"id": found[1], "sha": repository.commit}).encode(), body, JSON)
        elif found.re is TREE:
            self._send(
                200, json.dumps([_entry(repository.folder, path) for path in _files(repository)]).encode(), body, JSON
            )
        else:
            self._send_file(repository, found[3], body)

    def _send_file(self, repository: Repository, name: str, body: bool) -> None:
        path = repository.folder / name
        if not path.is_file():
            self._send(404, b"", body, {"X-Error-Code": "EntryNotFound"})
            return
        data = path.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        headers = {"X-Repo-Commit": repository.commit, "ETag": f'"{digest}"', "Accept-Ranges": "bytes"}
        sent = data[: len(data) // 2] if name in repository.cut else data
        self._send(200, sent, body, headers, length=len(data))

    def _send(self, status: int, data: bytes, body: bool, headers: dict[str, str], length: int | None = None) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data) if length is None else length)}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)
            if length not in (None, len(data)):
                self.close_connection = True
