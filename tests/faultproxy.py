"""A proxy before an S3 server that answers the first PUT of each matching object badly.

drop_reply    the request is done, its answer is lost
answer_409    the request is not done, "conflict, try again"
answer_503    the request is not done, "slow down"
cut_in_half   the server gets half of the body, then the connection ends
hold          the request is kept from the server until the test lets it go
"""

from __future__ import annotations

import http.client
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler

from loopback import Handler, Server


class FaultProxy(Server):
    def __init__(self, upstream_port: int, fault: str, pattern: str) -> None:
        super().__init__(_Relay)
        self.faults = 0
        self.caught, self.release = threading.Event(), threading.Event()  # for `hold`
        self._seen: set[str] = set()
        self._lock = threading.Lock()
        self._upstream_port, self._fault, self._pattern = upstream_port, fault, re.compile(pattern)

    def serve(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        if not self._first_put(request):
            self._answer(request, self._forward(request, body))
        elif self._fault == "hold":
            self.caught.set()
            self.release.wait(60)
            self._answer(request, self._forward(request, body))
        elif self._fault == "drop_reply":
            self._forward(request, body)
            request.close_connection = True
        elif self._fault == "cut_in_half":
            self._forward_half(request, body)
            request.close_connection = True
        else:
            status, code = (409, "ConditionalRequestConflict") if self._fault == "answer_409" else (503, "SlowDown")
            text = f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
            self._answer(request, (status, [("Content-Type", "application/xml")], text))

    def _first_put(self, request: BaseHTTPRequestHandler) -> bool:
        with self._lock:
            if request.command != "PUT" or request.path in self._seen or not self._pattern.search(request.path):
                return False
            self._seen.add(request.path)
            self.faults += 1
            return True

    def _forward(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        upstream = http.client.HTTPConnection("127.0.0.1", self._upstream_port, timeout=60)
        upstream.putrequest(request.command, request.path, skip_host=True, skip_accept_encoding=True)
        for name, value in request.headers.items():
            if name.lower() != "expect":
                upstream.putheader(name, value)
        upstream.endheaders(body)
        reply = upstream.getresponse()
        data = reply.read()
        upstream.close()
        return reply.status, reply.getheaders(), data

    def _forward_half(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        head = [f"{request.command} {request.path} HTTP/1.1"]
        head += [f"{name}: {value}" for name, value in request.headers.items() if name.lower() != "expect"]
        with socket.create_connection(("127.0.0.1", self._upstream_port), timeout=60) as upstream:
            upstream.sendall("\r\n".join([*head, "", ""]).encode("latin-1") + body[: len(body) // 2])

    @staticmethod
    def _answer(request: BaseHTTPRequestHandler, reply: tuple[int, list[tuple[str, str]], bytes]) -> None:
        status, headers, data = reply
        request.send_response_only(status)
        has_length = False
        for name, value in headers:
            if name.lower() not in ("connection", "transfer-encoding", "keep-alive"):
                request.send_header(name, value)
                has_length = has_length or name.lower() == "content-length"
        if not has_length:
            request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)


class _Relay(Handler):
    server: FaultProxy
    protocol_version = "HTTP/1.1"

    def relay(self) -> None:
        self.server.serve(self)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = relay
