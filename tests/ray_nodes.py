"""Ray nodes as processes of their own: a head, with or without its job server, and workers that join it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from commands import start, until
from conftest import RAY_FOLDER

RAY = str(Path(sys.executable).parent / "ray")


@dataclass(frozen=True)
class Head:
    process: subprocess.Popen[str]
    address: str
    dashboard: str


def start_head(num_cpus: int, **environment: str) -> Head:
    """On loopback, on ports that were free a moment ago; Python is the one of this environment."""
    port, dashboard, client, agent, agent_grpc = free_ports(5)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    process = start(
        RAY, "start", "--head", "--block", f"--num-cpus={num_cpus}", f"--port={port}", "--node-ip-address=127.0.0.1",
        "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}",
        f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_grpc}",
        f"--temp-dir={RAY_FOLDER / 'head'}", "--disable-usage-stats", PATH=path, **environment,
    )  # fmt: skip
    return Head(process, f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}")


def serving(answers: Callable[[Head], bool], num_cpus: int, **environment: str) -> Head:
    """A head that answers. Ray gives a node 30 s to come up, so on a busy machine it may take more than one."""
    for _ in range(3):
        head = start_head(num_cpus, **environment)
        until(lambda: answers(head) or head.process.poll() is not None, "a head")  # noqa: B023  (asked at once)
        if head.process.poll() is None:
            return head
    raise AssertionError(head.process.communicate()[1][-2000:])


def healthy(head: Head) -> bool:
    return ray("health-check", "--address", head.address).returncode == 0


def has_jobs(head: Head) -> bool:
    return ray("job", "list", "--address", head.dashboard).returncode == 0


def join(head: Head, num_cpus: int) -> subprocess.Popen[str]:
    agent, agent_grpc = free_ports(2)
    return start(
        RAY, "start", "--block", f"--address={head.address}", f"--num-cpus={num_cpus}", "--node-ip-address=127.0.0.1",
        f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_grpc}", "--disable-usage-stats",
    )  # fmt: skip


def ray(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([RAY, *arguments], capture_output=True, text=True, env=os.environ | environment, timeout=120)


def free_ports(count: int) -> list[str]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [str(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports
