"""A Ray of our own leaves nothing behind, whatever its processes are doing when it is told to end."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import ray

from mlb_batch.chain import cluster
from mlb_batch.processes import Process, below, children, end

HANGS = """
import atexit, os, signal, time
import ray
from mlb_batch.chain import cluster
from mlb_batch.chain.cluster import connected

@ray.remote
class Actor:
    def pid(self):
        atexit.register(time.sleep, 600)
        return os.getpid()

    def leave(self):
        ray.actor.exit_actor()

cluster.LEAVING_S = 1.0
with connected():
    actor = Actor.remote()
    print(ray.get(actor.pid.remote()))
    try:
        ray.get(actor.leave.remote())
    except ray.exceptions.RayActorError:
        pass  # to Ray it has ended
    wait = cluster.end
    cluster.end = lambda *given: (os.kill(os.getpid(), signal.SIGTERM), wait(*given))  # while what hangs is waited for
print("the last word")
"""
STOPPED = """
import os, signal
from mlb_batch.chain import cluster
from mlb_batch.processes import below

cluster.SHUTTING_S = 1.0
with cluster.connected():
    (head,) = (one for one in below(os.getpid()) if b"gcs_server" in one.read("cmdline"))
    os.kill(head.pid, signal.SIGSTOP)
print("the last word")
"""


@pytest.mark.whole_run
def test_an_actor_that_hangs_does_not_outlive_its_ray_and_what_was_found_is_said() -> None:
    done = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=120, check=True)
    number, said = done.stdout.splitlines()
    pid = int(number)
    assert said == "the last word", "a SIGTERM while Ray shuts down comes too late to change anything"
    with suppress(FileNotFoundError):
        assert Path(f"/proc/{pid}/cmdline").read_bytes() == b"", "it runs; what has ended is nothing but a number"


@pytest.mark.whole_run
def test_a_ray_that_hangs_on_its_way_out_is_not_waited_for_without_end() -> None:
    done = subprocess.run([sys.executable, "-c", STOPPED], capture_output=True, text=True, timeout=90, check=True)
    *_, said = done.stdout.splitlines()
    assert said == "the last word"


def test_only_what_is_left_is_killed_and_no_stranger_with_its_number() -> None:
    obeys, hangs, stranger = (subprocess.Popen(["sleep", "600"]) for _ in range(3))
    try:
        found = {one.pid: one for one in children(os.getpid())}
        assert {obeys.pid, hangs.pid, stranger.pid} <= set(found)
        assert {one.pid for one in below(os.getpid())} >= set(found)
        obeys.terminate()
        end([found[obeys.pid], found[hangs.pid], Process(stranger.pid, b"another start")], patience_s=0.5)
        assert (obeys.wait(), hangs.wait()) == (-15, -9) and stranger.poll() is None
    finally:
        for one in (obeys, hangs, stranger):
            one.kill()
            one.wait()


def test_whole_runs_stay_in_one_worker(ray_cluster: None, request: pytest.FixtureRequest) -> None:
    """Two Rays on two cores would stand in each other's way, and nothing but the time would tell."""
    grouped = request.config.getoption("loadgroup", default=False)
    assert request.node.nodeid.endswith("@whole runs") or not grouped


def test_a_run_that_has_to_wait_for_others_says_so(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @ray.remote(num_cpus=1.5)
    class Other:
        def is_there(self) -> bool:
            return True

    monkeypatch.setattr(cluster, "SOON_S", 0.0)
    other = Other.remote()
    ray.get(other.is_there.remote())
    cluster.say_if_crowded({"CPU": 0.5, "GPU": 0.0})
    assert capsys.readouterr().err == ""
    cluster.say_if_crowded({"CPU": 1.75, "GPU": 0.0})
    assert "this run needs 1.75 CPU, and others hold so much of the cluster" in capsys.readouterr().err
    ray.kill(other)
    monkeypatch.setattr(cluster, "SOON_S", 60.0)
    cluster.say_if_crowded({"CPU": 1.75, "GPU": 0.0})
    assert capsys.readouterr().err == "", "it is waited for what is about to end"
