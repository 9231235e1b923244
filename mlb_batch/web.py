"""http(s) as storage: only the host that was named is asked, and no name may lead inside.

A redirect would leave the prefixes that a job allows, and a name can be made to point at this machine or at a cloud's
metadata service: both are refused before anything is sent there. Webhooks go by the same rule.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from typing import Any

CONNECT_S = 5.0


async def guarded_client(*, loop: Any = None, answer_s: float) -> Any:
    """The session that fsspec's http filesystem works with."""
    import aiohttp  # not needed by who never reads from the web

    class Resolver(aiohttp.ThreadedResolver):
        async def resolve(self, host: str, *rest: Any, **options: Any) -> Any:
            found = await super().resolve(host, *rest, **options)
            for one in found:
                if refused(host, one["host"]):
                    raise PermissionError(f"{host} is {one['host']}, an address inside this network")
            return found

    async def refuse(session: Any, context: Any, request: Any) -> None:
        target = request.response.headers.get("Location", "elsewhere")
        raise PermissionError(f"{request.url} redirects to {target[:200]}; name that address instead, and allow it")

    async def soon(request: Any, ask: Any) -> Any:
        """Who sends an answer's head byte by byte is never silent; for what comes then there is a video's time."""
        try:
            async with asyncio.timeout(CONNECT_S + answer_s) as limit:
                return await ask(request)
        except TimeoutError:
            if not limit.expired():
                raise
            raise TimeoutError(f"it did not begin to answer within {CONNECT_S + answer_s:g} s") from None

    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(refuse)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(resolver=Resolver()),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=answer_s),
        middlewares=[soon],
        trace_configs=[trace],
    )


def refused(host: str, address: str) -> bool:
    """Whether nobody is to be asked at an address that a host was found at: it leads inside, where the host was not
    named as this machine, or to many machines at once.
    """
    one = _plain(address)
    here = one.is_loopback and host in ("localhost", str(one))
    return one.is_multicast or (inside(address) and not here)


def inside(address: str) -> bool:
    """This machine, or link-local, where clouds keep their metadata."""
    one = _plain(address)
    return one.is_loopback or one.is_unspecified or is_metadata(address)


def is_metadata(host: str) -> bool:
    """A link-local address written out, with a port or without; also as the one number that C libraries take."""
    bare = re.sub(r":\d*$", "", host) if host.count(":") == 1 or host.startswith("[") else host
    try:
        one = _plain(socket.inet_ntoa(socket.inet_aton(bare)))  # also 0xa9fea9fe, 2852039166 and 169.254.43518
    except OSError:
        try:
            one = _plain(bare.strip("[]"))
        except ValueError:
            return False  # a name
    return one.is_link_local or str(one) == "fd00:ec2::254"


def _plain(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    one = ipaddress.ip_address(address.partition("%")[0])
    return getattr(one, "ipv4_mapped", None) or one
