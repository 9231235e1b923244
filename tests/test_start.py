"""A local Ray that does not come up, or is told to stop before, ends its process, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from commands import MLB_BATCH, found, kill_all, start, until
from ray_nodes import free_ports, healthy, serving
from small_jobs import clips, job_file

pytestmark = pytest.mark.whole_run

SOON = "import mlb_batch.chain.cluster as cluster; cluster.START_S = 0.5; cluster.start_local(2)"

# A process that joins at each address that it is given, and says with which exit code a run would end there.
JOINS = """
import os, sys
from mlb_batch.chain.cluster import connected
from mlb_batch.cli import ended
for address in sys.argv[1:]:
    os.environ["RAY_ADDRESS"] = address
    code = ended(connected().__enter__)
    print(code, flush=True)
sys.exit(code)
"""
# A process that is pinned to two of 64 cores, in containers with the quotas that are given.
PINNED = """
import json, os, sys
from ray._private import utils
from mlb_batch.chain.cluster import connected
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
utils.multiprocessing.cpu_count = lambda: 64
for quota in sys.argv[1:]:
    utils._get_docker_cpus = lambda: json.loads(quota)
    with connected() as nodes:
        print(nodes[0]["CPU"])
"""
JOINS_SOON = f"import mlb_batch.chain.cluster as cluster; cluster.JOIN_S = 0.5\n{JOINS}"
# What a head says of itself, as one of another Ray would say it.
AGED = """
import json, sys
from ray._common.usage import usage_constants, usage_lib
from ray._private.ray_constants import KV_NAMESPACE_CLUSTER
from ray._raylet import GcsClient
head = GcsClient(address=sys.argv[1])
told = json.dumps({**usage_lib.get_cluster_metadata(head), "ray_version": "2.9.3"}).encode()
head.internal_kv_put(usage_constants.CLUSTER_METADATA_KEY, told, True, KV_NAMESPACE_CLUSTER)
"""


def left_behind(mark: str) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (process / "environ").read_bytes():
                found.append(process.name)
        except OSError:  # it ended meanwhile
            continue
    return found


def joined(script: str, *addresses: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script, *addresses], env={**os.environ, **environment},
                          capture_output=True, text=True, timeout=60)  # fmt: skip


def test_a_start_that_takes_too_long_ends_in_one_line() -> None:
    mark = uuid.uuid4().hex
    ended = subprocess.run(
        [sys.executable, "-c", SOON], env={**os.environ, "MARK": mark}, capture_output=True, text=True
    )
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert "Ray did not start" in line and "run the same command again" in line
    until(lambda: not left_behind(mark), "the end of Ray's processes")


@pytest.mark.parametrize(
    ("name", "value"), [("RAY_TMPDIR", "/proc/nowhere"), ("RAY_AUTH_TOKEN_PATH", "/nowhere/token")]
)
def test_what_ray_cannot_start_with_is_one_line(name: str, value: str) -> None:
    ended = joined(JOINS, "local", **{name: value})
    (line,) = ended.stderr.splitlines()
    assert ended.returncode == 1 and line.startswith("failed: Ray can't start: ") and value in line


def test_a_ray_of_this_machine_takes_the_cores_that_this_process_may_use_and_never_less_than_two() -> None:
    ended = subprocess.run([sys.executable, "-c", PINNED, "null", "0.5"], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "2.0\n2.0\n", "")


def test_what_is_no_address_of_a_head_is_the_users_mistake() -> None:
    addresses = ["http://127.0.0.1:8265", "ray://127.0.0.1:10001", "127.0.0.1", "127.0.0.1:", ":6379", "head:99999",
                 "a..b:6379", "head:6379/", "x y:6379", "me@head:6379", "Auto"]  # fmt: skip
    ended = joined(JOINS, *addresses)
    assert ended.stdout.split() == ["2"] * len(addresses)
    for address, line in zip(addresses, ended.stderr.splitlines(), strict=True):
        assert line.startswith(f"error: RAY_ADDRESS={address}: ") and "10.0.0.5:6379" in line


def test_where_nothing_listens_the_job_fails_at_once_and_can_be_run_again() -> None:
    hosts = ["127.0.0.1", "[::1]", "no-such-host.invalid"]
    ended = joined(JOINS, *(f"{host}:{free_ports(1)[0]}" for host in hosts))
    assert ended.stdout.split() == ["1"] * len(hosts)
    for host, line in zip(hosts, ended.stderr.splitlines(), strict=True):
        assert line.startswith(f"failed: RAY_ADDRESS={host}:")
        assert "nothing answers there" in line and "run the same command again" in line


def test_what_listens_and_is_no_head_is_not_waited_for_without_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        ended = joined(JOINS_SOON, f"127.0.0.1:{other.getsockname()[1]}")
    assert ended.returncode == 1 and "is it the port of a cluster's head?" in ended.stderr.splitlines()[-1]


@contextmanager
def silent() -> Iterator[int]:
    """A port that neither answers nor refuses: those who wait to be let in are as many as may."""
    with ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        stack.enter_context(socket.create_connection(full.getsockname()))
        yield full.getsockname()[1]


def test_a_sigterm_while_a_cluster_does_not_answer_gives_the_lease_back_at_once(tmp_path: Path) -> None:
    clips(tmp_path / "videos", 1)
    with silent() as port:
        process = start(MLB_BATCH, "run", str(job_file(tmp_path)), RAY_ADDRESS=f"127.0.0.1:{port}")
        asks = f"0100007F:{port:04X} 02"  # as the system lists a connection that was asked for
        until(lambda: asks in Path("/proc/net/tcp").read_text() or process.poll() is not None, "the knock")
        process.terminate()
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (143, "", "")
    assert not list((tmp_path / "out").rglob("*lease*"))


def test_a_cluster_of_another_ray_is_the_users_to_mend() -> None:
    head = serving(healthy, 1)
    try:
        subprocess.run([sys.executable, "-c", AGED, head.address], check=True, timeout=60)
        ended = joined(JOINS, head.address)
    finally:
        kill_all(head.process)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1, ended.stderr
    assert f"error: RAY_ADDRESS={head.address}: Version mismatch: " in ended.stderr and "Ray: 2.9.3" in ended.stderr


@pytest.mark.parametrize("at_work", ["mlb_batch.video.child", "gcs_server"])
def test_a_sigterm_before_there_is_anything_to_commit_has_the_exit_code_of_any_other(
    tmp_path: Path, at_work: str
) -> None:
    """While the job is planned, and while Ray starts."""
    clips(tmp_path / "videos", 1)
    mark = uuid.uuid4().hex
    process = start(MLB_BATCH, "run", str(job_file(tmp_path)), MARK=mark)
    until(lambda: found(process, at_work), at_work)
    process.terminate()
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (143, ""), err
    assert not list((tmp_path / "out").rglob("*lease*")), "the next run would have to wait"
    until(lambda: not left_behind(mark), "the end of Ray's processes")


def test_a_sigterm_to_the_whole_process_group_is_for_the_driver_to_answer(tmp_path: Path) -> None:
    """As `timeout` sends it. Ray is there until it has: its core would end this process without a word."""
    clips(tmp_path / "videos", 20)
    mark = uuid.uuid4().hex
    process = start(MLB_BATCH, "run", str(job_file(tmp_path)), MARK=mark)
    until(lambda: list((tmp_path / "out").glob("runs/*/progress.json")) or process.poll() is not None, "the run")
    os.killpg(process.pid, signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143 and '"stopped": "SIGTERM"' in out, (out, err)
    assert all(line.startswith("done ") for line in err.splitlines()), err
    until(lambda: not left_behind(mark), "the end of Ray's processes")
