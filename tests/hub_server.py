"""A hub on a port of this machine: a folder as owner/name at one commit, and faults by path."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pytest
from huggingface_hub import constants
from loopback import Handler, Server

COMMIT = "a" * 40


class Hub(Server):
    def __init__(self, folder: Path) -> None:
        super().__init__(_Handler)
        self.folder = folder
        self.sent: list[str] = []  # files that were given, by their names in the repository
        self.fault: Callable[[str, BaseHTTPRequestHandler], bool] = lambda path, request: False  # True: it answered

    def files(self) -> list[Path]:
        return [path for path in sorted(self.folder.rglob("*")) if path.is_file()]


class _Handler(Handler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path)
        if self.server.fault(path, self):
            return
        if "/tree/" in path:
            self._answer(_json([self._entry(file) for file in self.server.files()]))
        elif path.startswith("/api/models/"):
            names = [{"rfilename": self._name(file)} for file in self.server.files()]
            self._answer(_json({"id": "owner/name", "sha": COMMIT, "siblings": names}))
        else:
            self._give(path.partition("/resolve/")[2].partition("/")[2])

    do_HEAD = do_GET

    def _name(self, file: Path) -> str:
        return file.relative_to(self.server.folder).as_posix()

    def _entry(self, file: Path) -> dict[str, Any]:
        return {"type": "file", "path": self._name(file), "size": file.stat().st_size, "oid": _hash(file.read_bytes())}

    def _give(self, name: str) -> None:
        if self.command == "GET":
            self.server.sent.append(name)
        self._answer((self.server.folder / name).read_bytes())

    def _answer(self, data: bytes) -> None:
        self.send_response(200)
        for header, value in (("ETag", f'"{_hash(data)}"'), ("X-Repo-Commit", COMMIT), ("Content-Length", len(data))):
            self.send_header(header, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _hash(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@contextmanager
def hub_of(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """What a hub id is looked for at; what comes is kept below `cache`."""
    with Hub(folder) as hub:
        told = {"ENDPOINT": hub.uri, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": False}
        told["HUGGINGFACE_CO_URL_TEMPLATE"] = hub.uri + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in told.items():
            monkeypatch.setattr(constants, name, value)
        yield hub
