"""`ray job submit` to a real head with its job server and token authentication; stopped on the way, submitted again."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import RAY_FOLDER
from ray.job_submission import JobSubmissionClient
from small_jobs import clips, ids, job_file, kill_all, start, table

PROJECT = Path(__file__).parents[1]
RAY = str(Path(sys.executable).parent / "ray")
VIDEOS, PROMPTS = 40, 2
ROWS = VIDEOS * PROMPTS
PATIENCE_S = 240.0


def free_ports(count: int) -> list[str]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [str(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


def until(true: Callable[[], object], what: str) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end_s, f"{what} did not come within {PATIENCE_S:.0f} s"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def job_server() -> Iterator[str]:
    """A head of its own; its address."""
    port, dashboard, client, agent, agent_grpc = free_ports(5)
    # Python is the one of this environment, and a stopped job gets time to commit (Ray's own default is 3 s).
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "RAY_JOB_STOP_WAIT_TIME_S": "30"}
    head = start(
        RAY, "start", "--head", "--block", "--num-cpus=2", f"--port={port}", "--node-ip-address=127.0.0.1",
        "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}",
        f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_grpc}",
        f"--temp-dir={RAY_FOLDER / 'head'}", "--disable-usage-stats", **environment,
    )  # fmt: skip
    address = f"http://127.0.0.1:{dashboard}"
    until(lambda: ray("job", "list", "--address", address).returncode == 0, "the job server")
    yield address
    kill_all(head)


def ray(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([RAY, *arguments], capture_output=True, text=True, env=os.environ | environment, timeout=120)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project as a working directory: the package and the job script, installed nowhere."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("mlb_batch", "jobs"):
        shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def submit(address: str, shipped: Path, name: str, job: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return ray(
        "job", "submit", "--address", address, "--no-wait", "--submission-id", name, "--working-dir", str(shipped),
        "--", "python", "jobs/annotate.py", str(job), "--set", "output.commit_rows=4", **environment,
    )  # fmt: skip


def status(address: str, name: str) -> str:
    said = ray("job", "status", "--address", address, name)
    return (said.stdout + said.stderr).upper()


def test_a_submission_that_is_stopped_and_submitted_again_loses_and_doubles_nothing(
    job_server: str, shipped: Path, tmp_path: Path
) -> None:
    clips(tmp_path / "videos", VIDEOS)
    # Long enough answers that the stop comes in the middle.
    job, out = job_file(tmp_path, generate={"max_new_tokens": 32}), tmp_path / "out"
    first = submit(job_server, shipped, "first", job)
    assert first.returncode == 0, first.stderr
    until(lambda: ids(out), "the first commit")
    JobSubmissionClient(job_server).stop_job(
        "first"
    )  # `ray job stop`, without the seconds that it takes to start
    until(lambda: "STOPPED" in status(job_server, "first"), "the stop")
    before = ids(out)
    assert 0 < len(before) == len(set(before)) < ROWS
    stopped = json.loads(next((out / "runs").glob("*/summary.json")).read_text())
    assert (stopped["stopped"], stopped["exit_code"]) == ("SIGTERM", 143)
    assert submit(job_server, shipped, "second", job).returncode == 0
    until(lambda: "SUCCEEDED" in status(job_server, "second"), "the end of the second submission")
    assert len(ids(out)) == len(set(ids(out))) == ROWS
    assert {row["run_id"] for row in table(out) if row["annotation_id"] in before} == {stopped["run_id"]}
    logs = ray("job", "logs", "--address", job_server, "second").stdout
    assert f'"skipped_done": {len(before)}' in logs


def test_without_the_token_nothing_answers(job_server: str) -> None:
    for path in ("/api/jobs/", "/api/version", "/nodes?view=summary"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(job_server + path, timeout=30)
        assert refused.value.code in (401, 403)
