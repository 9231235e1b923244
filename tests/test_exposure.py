"""What listens while a run is at work: everything that takes orders wants the token, on whatever interface it is."""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from commands import CAPTIONER, MLB_BATCH, descendants, found, kill_all, start, until
from small_jobs import clips, job_file

pytestmark = pytest.mark.whole_run

# A method of every service that Ray's processes offer to each other; what isn't asked for the token answers OK.
ORDERS = ("NodeInfoGcsService/GetAllNodeInfo", "InternalKVGcsService/InternalKVKeys", "JobInfoGcsService/GetAllJobInfo",
          "ActorInfoGcsService/GetAllActorInfo", "NodeManagerService/GetNodeStats",
          "NodeManagerService/RequestWorkerLease", "CoreWorkerService/PushTask", "CoreWorkerService/KillActor",
          "CoreWorkerService/GetCoreWorkerStats", "ReporterService/GetTraceback")  # fmt: skip
LISTENS = "0A"
REFUSED, UNKNOWN = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED


def listening(pid: int) -> list[tuple[str, int]]:
    """(address, port) of IPv4 or IPv6 that a process and those under it listen on."""
    held = set()
    for one in (pid, *descendants(pid)):
        with suppress(OSError):  # it ended while we looked
            held |= {str(link.readlink()) for link in Path(f"/proc/{one}/fd").iterdir()}
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == LISTENS and f"socket:[{rest[5]}]" in held:
                address, _, port = local.partition(":")
                found.append((_written(address), int(port, 16)))
    return found


def _written(address: str) -> str:
    if len(address) > 8:  # IPv6: Ray listens on all of them or on none
        return "127.0.0.1"
    host = socket.inet_ntoa(bytes.fromhex(address)[::-1])
    return "127.0.0.1" if host == "0.0.0.0" else host


def answers(ip: str, port: int) -> set[grpc.StatusCode]:
    """What a stranger gets: one who has no token."""
    said = set()
    with grpc.insecure_channel(f"{ip}:{port}") as channel:
        for order in ORDERS:
            try:
                channel.unary_unary(f"/ray.rpc.{order}")(b"", timeout=5)
                said.add(grpc.StatusCode.OK)
            except grpc.RpcError as error:
                said.add(error.code())
    return said


@pytest.mark.slow
def test_a_stranger_can_give_no_order(tmp_path: Path) -> None:
    clips(tmp_path / "videos", 40)
    process = start(MLB_BATCH, "run", str(job_file(tmp_path, generate={"max_new_tokens": 32})))
    try:
        until(lambda: process.poll() is not None or found(process, CAPTIONER), "a captioner")
        ports = listening(process.pid)
        said = {port: answers(*port) for port in ports}
    finally:
        kill_all(process)
    orders = {port: codes for port, codes in said.items() if codes != {grpc.StatusCode.UNAVAILABLE}}
    assert sum(REFUSED in codes for codes in orders.values()) >= 5, said
    assert all(codes <= {REFUSED, UNKNOWN} for codes in orders.values()), said
