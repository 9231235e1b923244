"""A real S3 server on loopback for tests: Ceph's RADOS Gateway over one monitor and one in-memory store.

Where Ceph isn't installed (Debian: radosgw, ceph-mon, ceph-osd) it falls back to `moto`, which is a simulation, and
says so; where neither is there, the tests that need a server are skipped.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import urllib.error
import urllib.request
import uuid
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import s3fs

ACCESS_KEY, SECRET_KEY = "testkey", "testsecret"
STARTS_WITHIN_S = 60
STOPS_WITHIN_S = 30


@dataclass(frozen=True)
class S3Server:
    """A running server; `environment` is what a process needs to reach it."""

    port: int
    kind: str  # ceph | moto
    pids: tuple[int, ...]
    home: Path | None = None  # where Ceph keeps its things

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environment(self, port: int | None = None) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port or self.port}",
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REQUEST_CHECKSUM_CALCULATION": "WHEN_REQUIRED",
        }

    def client(self) -> s3fs.S3FileSystem:
        """One that sees what there is now, whatever the environment says."""
        return s3fs.S3FileSystem(
            key=ACCESS_KEY, secret=SECRET_KEY, endpoint_url=self.endpoint, use_listings_cache=False,
            client_kwargs={"region_name": "us-east-1"}, skip_instance_cache=True,
        )  # fmt: skip

    def make_bucket(self) -> str:
        bucket = f"test-{uuid.uuid4().hex[:12]}"
        # Its mkdir would name a region, which the gateway has none of.
        self.client().call_s3("create_bucket", Bucket=bucket)
        return bucket

    def stand_still(self) -> None:
        """Returns once no thread of the gateway runs: on a busy machine some answer for a second after the signal."""
        os.kill(self.pids[0], signal.SIGSTOP)
        deadline = time.monotonic() + STOPS_WITHIN_S
        while any(_state(thread) != "T" for thread in Path(f"/proc/{self.pids[0]}/task").iterdir()):
            assert time.monotonic() < deadline, "the gateway does not stop"
            time.sleep(0.01)

    def go_on(self) -> None:
        os.kill(self.pids[0], signal.SIGCONT)


def _state(thread: Path) -> str:
    """Behind the name, which may hold anything, brackets too."""
    return (thread / "stat").read_text().rpartition(")")[2].split()[0]


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """One for all, started for the first that asks."""
    with contextlib.ExitStack() as stack:
        yield start_server(stack)


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The server, with this process's environment pointing at it."""
    s3fs.S3FileSystem.clear_instance_cache()  # those before it were made for another environment
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    return s3_server


def start_server(stack: contextlib.ExitStack, store: str = "memstore") -> S3Server:
    """Start one that is stopped with the stack, by the pids that were started."""
    if all(shutil.which(program) for program in ("radosgw", "ceph-mon", "ceph-osd")):
        return _start_ceph(stack, store)
    try:
        import moto  # noqa: F401
    except ImportError:
        pytest.skip("no S3 server: install radosgw, ceph-mon and ceph-osd (or moto[server], a simulation)")
    warnings.warn("radosgw is not installed: S3 is simulated by moto", stacklevel=1)
    return _start_moto(stack)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _start_moto(stack: contextlib.ExitStack) -> S3Server:
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = _started(stack, command, Path(os.devnull))
    _wait_until_answers(port, process)
    return S3Server(port, "moto", (process.pid,))


def _start_ceph(stack: contextlib.ExitStack, store: str) -> S3Server:
    home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="s3-", ignore_cleanup_errors=True)))
    port, monitor_port, cluster = free_port(), free_port(), str(uuid.uuid4())
    for folder in ("mon", "osd", "rgw", "run"):
        (home / folder).mkdir()
    config = home / "ceph.conf"
    config.write_text(_ceph_config(home, cluster, port, monitor_port, store))
    conf = ("-c", str(config))
    _run("monmaptool", "--create", "--fsid", cluster, "--addv", "a", f"[v2:127.0.0.1:{monitor_port}]", f"{home}/map")
    _run("ceph-mon", *conf, "--mkfs", "-i", "a", "--monmap", f"{home}/map")
    monitor = _monitor(stack, home)
    osd_id = str(uuid.uuid4())
    _run("ceph", *conf, "osd", "new", osd_id)
    _run("ceph-osd", *conf, "-i", "0", "--mkfs", "--osd-uuid", osd_id)
    osd, gateway = _osd(stack, home), _gateway(stack, home)
    user = ("--uid=test", "--display-name=test", f"--access-key={ACCESS_KEY}", f"--secret={SECRET_KEY}")
    _run("radosgw-admin", *conf, "-n", "client.rgw", "user", "create", *user)
    _wait_until_answers(port, gateway)
    return S3Server(port, "ceph", (gateway.pid, osd.pid, monitor.pid), home)


def kill_server(server: S3Server) -> None:
    """All of it at once, as when its machine loses power."""
    for pid in server.pids:
        os.kill(pid, signal.SIGKILL)


def restart_server(stack: contextlib.ExitStack, server: S3Server) -> S3Server:
    """The same server on its folder and port, with other processes; only `bluestore` has kept what it held."""
    assert server.home is not None
    monitor, osd, gateway = (start(stack, server.home) for start in (_monitor, _osd, _gateway))
    _wait_until_answers(server.port, gateway)
    return replace(server, pids=(gateway.pid, osd.pid, monitor.pid))


def _monitor(stack: contextlib.ExitStack, home: Path) -> subprocess.Popen[bytes]:
    return _started(stack, ["ceph-mon", "-c", f"{home}/ceph.conf", "-i", "a", "-f"], home / "mon.out")


def _osd(stack: contextlib.ExitStack, home: Path) -> subprocess.Popen[bytes]:
    return _started(stack, ["ceph-osd", "-c", f"{home}/ceph.conf", "-i", "0", "-f"], home / "osd.out")


def _gateway(stack: contextlib.ExitStack, home: Path) -> subprocess.Popen[bytes]:
    return _started(stack, ["radosgw", "-c", f"{home}/ceph.conf", "-n", "client.rgw", "-f"], home / "rgw.out")


def _ceph_config(home: Path, cluster: str, port: int, monitor_port: int, store: str) -> str:
    """One of everything on loopback, without keys between its own parts, and small."""
    return textwrap.dedent(f"""\
        [global]
        fsid = {cluster}
        mon host = [v2:127.0.0.1:{monitor_port}]
        public addr = 127.0.0.1
        cluster addr = 127.0.0.1
        auth cluster required = none
        auth service required = none
        auth client required = none
        ms mon client mode = crc
        run dir = {home}/run
        admin socket = {home}/run/$cluster-$name.asok
        log file = {home}/$name.log
        osd pool default size = 1
        osd pool default min size = 1
        osd pool default pg num = 1
        osd pool default pgp num = 1
        osd pool default pg autoscale mode = off
        mon allow pool size one = true
        mon max pg per osd = 1000
        mon data avail crit = 1
        osd crush chooseleaf type = 0
        paxos propose interval = 0.05
        paxos min wait = 0.05
        [mon.a]
        mon data = {home}/mon
        [osd]
        osd data = {home}/osd
        osd objectstore = {store}
        osd class load list = *
        osd class default list = *
        memstore device bytes = 2147483648
        bluestore block size = 4294967296
        osd memory target = 939524096
        [client.rgw]
        rgw data = {home}/rgw
        rgw frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
        rgw thread pool size = 64
        """)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=STARTS_WITHIN_S, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"


def _started(stack: contextlib.ExitStack, command: list[str], log: Path) -> subprocess.Popen[bytes]:
    output = stack.enter_context(log.open("wb"))
    # In a session of its own, or the shell's end would wake what a test has stopped.
    process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)

    def stop() -> None:
        process.kill()  # nothing in it is to be kept
        process.wait(10)

    stack.callback(stop)
    return process


def _wait_until_answers(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + STARTS_WITHIN_S
    while time.monotonic() < deadline_s:
        assert process.poll() is None, "the S3 server ended while it started"
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
            return
        except urllib.error.HTTPError:
            return  # it answers, if only with a refusal
        except OSError:
            time.sleep(0.05)
    raise AssertionError(f"no S3 server answered on port {port}")
