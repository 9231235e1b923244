"""Web servers on a port of this machine: real ones, for as long as a test talks to them."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

LOOK_S = 0.05  # for its end; by default it looks twice a second, and whoever ends it waits


class Server(ThreadingHTTPServer):
    """Answers while it is entered. What a test tells it, or wants to know, lies on it: a handler is one request's."""

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.port = self.server_port
        self.uri = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(LOOK_S,), daemon=True).start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    """One that says nothing to the terminal."""

    def log_message(self, *_: object) -> None: ...
