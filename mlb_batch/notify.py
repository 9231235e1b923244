"""The word at the end of a run, to `notify.webhook`: one POST of the summary, or of the error, as JSON.

Whatever becomes of it, the run's outcome stands; a post that failed is said on stderr, by its host alone. The target is
looked up once and the connection goes to the address that was checked: never to link-local addresses, where clouds keep
their metadata, to this machine only where it is named as such, and never on to where an answer redirects.
"""

from __future__ import annotations

import functools
import http.client
import json
import socket
import ssl
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any, Concatenate, ParamSpec
from urllib.parse import urlsplit

from mlb_batch.errors import MlbBatchError
from mlb_batch.spec import JobSpec
from mlb_batch.stop import exit_code_of
from mlb_batch.web import refused

P = ParamSpec("P")
Run = Callable[Concatenate[JobSpec, P], dict[str, Any]]

STEP_S = 5.0  # to connect, and for each wait on an answer
WHOLE_S = 10.0  # a run that got SIGTERM has 30


class Undelivered(Exception):
    """Why a post didn't arrive; the message holds nothing of the url but its host."""


def announced(run: Run[P]) -> Run[P]:
    """The run, and its word at the end."""

    @functools.wraps(run)
    def wrapper(spec: JobSpec, /, *rest: P.args, **named: P.kwargs) -> dict[str, Any]:
        word: dict[str, Any] = {}
        try:
            word = run(spec, *rest, **named)
            return word
        finally:
            announce(spec, word or {"output": spec.output.uri, **_broken(sys.exception())})

    return wrapper


def _broken(error: BaseException | None) -> dict[str, Any]:
    """What the command ends with, and why: of a mistake of the program's own, the kind too, as a traceback has it."""
    ours = isinstance(error, MlbBatchError)
    said = str(error) if ours else "".join(traceback.format_exception_only(error)).strip()
    return {"exit_code": exit_code_of(error), "error": said}


def announce(spec: JobSpec, word: Mapping[str, Any]) -> None:
    url = spec.notify.webhook
    if url is None:
        return
    host = urlsplit(url).hostname
    problem = f"no answer within {WHOLE_S:.0f} s"

    def send() -> None:
        nonlocal problem
        try:
            post(url, {"name": spec.name, **word})
            problem = ""
        except Undelivered as error:
            problem = str(error)

    # In a thread: a name is looked up for as long as the system likes.
    sender = threading.Thread(target=send, name="webhook", daemon=True)
    sender.start()
    sender.join(WHOLE_S)
    if problem:
        print(f"notify.webhook on {host}: {problem}; the run itself is as it was said", file=sys.stderr, flush=True)


def post(url: str, word: Mapping[str, Any]) -> None:
    """Undelivered where the target is refused, can't be reached, or doesn't answer with 2xx."""
    to = urlsplit(url)
    assert to.hostname is not None
    try:
        body = json.dumps(word).encode()
        port = to.port or (443 if to.scheme == "https" else 80)
        with closing(http.client.HTTPConnection(to.hostname, port)) as connection:
            connection.sock = _connected(to.scheme, to.hostname, port)
            path = f"{to.path or '/'}{'?' + to.query if to.query else ''}"
            connection.request("POST", path, body, {"Content-Type": "application/json", "Host": to.netloc})
            status = connection.getresponse().status
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Undelivered(f"it can't be reached ({type(error).__name__})") from None  # its text may hold the url
    if not 200 <= status < 300:
        raise Undelivered(f"it answered {status}" + (", a redirect" if 300 <= status < 400 else ""))


def _connected(scheme: str, host: str, port: int) -> socket.socket:
    """To the address that was checked, whatever the name may lead to a moment later."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(one[4][0]) for one in found]
    if any(refused(host, address) for address in addresses):
        raise Undelivered("its address is link-local or this machine's, where no webhook goes")
    plain = _first_of(addresses, port)
    return plain if scheme == "http" else ssl.create_default_context().wrap_socket(plain, server_hostname=host)


def _first_of(addresses: list[str], port: int) -> socket.socket:
    """A name may have an address of IPv6 that nothing listens on."""
    for address in addresses[:-1]:
        try:
            return socket.create_connection((address, port), STEP_S)
        except OSError:
            continue
    return socket.create_connection((addresses[-1], port), STEP_S)
