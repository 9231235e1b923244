"""A proxy before an S3 server in bad weather: a share of all requests goes wrong, the same ones for the same seed.

slow_down   503 SlowDown          error_500   500 InternalError       too_many   429
reset       the connection ends   truncate    half of the body, then the connection ends
hang        no answer             calm        nothing goes wrong

`refuse(code, part)` makes it answer everything whose path has that part with 403 and that code from then on. `requests`
counts by method, `answers` the server's own ones by status, and `paths` keeps (method, path, range) of every request.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler

from faultproxy import FaultProxy

ANSWERS = {"slow_down": (503, "SlowDown"), "error_500": (500, "InternalError"), "too_many": (429, "TooManyRequests")}


class Storm(FaultProxy):
    def __init__(self, upstream_port: int, kind: str = "calm", share: float = 0.0, seed: int = 0) -> None:
        super().__init__(upstream_port, kind, "")
        self.requests: Counter[str] = Counter()
        self.answers: Counter[int] = Counter()
        self.paths: list[tuple[str, str, str]] = []
        self.bytes_sent = 0
        self.before: dict[int, Callable[[], object]] = {}  # number of a request -> what to call before it is answered
        self._kind, self._share, self._chance = kind, share, random.Random(seed)
        self._refusal = self._refused_part = ""
        self._over = threading.Event()

    def become(self, kind: str, share: float) -> None:
        """Other weather from now on."""
        with self._lock:
            self._kind, self._share = kind, share

    def refuse(self, code: str, part: str = "") -> None:
        self._refusal, self._refused_part = code, part

    def serve(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        with self._lock:
            number = self.requests.total()
            self.requests[request.command] += 1
            self.paths.append((request.command, request.path, request.headers.get("Range") or ""))
            strikes = self._chance.random() < self._share
            self.faults += strikes
        if number in self.before:
            self.before[number]()
        if self._refusal and self._refused_part in request.path:
            self._say(request, 403, self._refusal)
        elif not strikes or (self._kind == "truncate" and request.command != "GET"):
            reply = self._forward(request, body)
            self.answers[reply[0]] += 1
            self.bytes_sent += len(reply[2])
            self._answer(request, reply)
        elif self._kind in ANSWERS:
            self._say(request, *ANSWERS[self._kind])
        elif self._kind == "truncate":
            status, headers, data = self._forward(request, body)
            headers = (
                [*headers, ("Content-Length", str(len(data)))] if not dict(headers).get("Content-Length") else headers
            )
            self._answer(request, (status, headers, data[: len(data) // 2]))
            request.close_connection = True
        else:
            if self._kind == "hang":
                self._over.wait(60)
            request.close_connection = True

    def _say(self, request: BaseHTTPRequestHandler, status: int, code: str) -> None:
        text = f"<Error><Code>{code}</Code><Message>injected {code}</Message></Error>".encode()
        text = b"" if request.command == "HEAD" else text
        self._answer(request, (status, [("Content-Type", "application/xml")], text))

    def __exit__(self, *raised: object) -> None:
        self._over.set()
        super().__exit__(*raised)
