"""http(s) as storage: only the host that was named is asked, and no name may lead inside.

A redirect would leave the prefixes that a job allows, and a name can be made to point at this machine or at a cloud's
metadata service: both are refused before anything is sent there.
"""

from __future__ import annotations

import ipaddress
from typing import Any

CONNECT_S = 5.0


async def guarded_client(*, loop: Any = None, answer_s: float) -> Any:
    """The session that fsspec's http filesystem works with."""
    import aiohttp  # not needed by who never reads from the web

    class Resolver(aiohttp.ThreadedResolver):
        async def resolve(self, host: str, *rest: Any, **options: Any) -> Any:
            found = await super().resolve(host, *rest, **options)
            for one in found:
                if host != "localhost" and inside(one["host"]):
                    raise PermissionError(f"{host} is {one['host']}, an address inside this network")
            return found

    async def refuse(session: Any, context: Any, request: Any) -> None:
        target = request.response.headers.get("Location", "elsewhere")
        raise PermissionError(f"{request.url} redirects to {target[:200]}; name that address instead, and allow it")

    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(refuse)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(resolver=Resolver()),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=answer_s),
        trace_configs=[trace],
    )


def inside(address: str) -> bool:
    """This machine, or link-local, where clouds keep their metadata."""
    one = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(one, "ipv4_mapped", None)
    one = mapped or one
    return one.is_loopback or one.is_link_local or one.is_unspecified or str(one) == "fd00:ec2::254"
