"""A local Ray that does not come up, or is told to stop before, ends its process, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from ray_nodes import until
from small_jobs import MLB_BATCH, clips, descendants, job_file, start

SOON = "import mlb_batch.chain.cluster as cluster; cluster.START_S = 0.5; cluster.start_local(2)"

ONCE = """
import sys
from mlb_batch.chain.cluster import connected
from mlb_batch.cli import ended
sys.exit(ended(connected().__enter__))
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
    ended = subprocess.run(
        [sys.executable, "-c", ONCE], env={**os.environ, name: value}, capture_output=True, text=True
    )
    (line,) = ended.stderr.splitlines()
    assert ended.returncode == 1 and line.startswith("failed: Ray can't start: ") and value in line


@pytest.mark.parametrize("at_work", ["mlb_batch.video.child", "gcs_server"])
def test_a_sigterm_before_there_is_anything_to_commit_has_the_exit_code_of_any_other(
    tmp_path: Path, at_work: str
) -> None:
    """While the job is planned, and while Ray starts."""
    clips(tmp_path / "videos", 1)
    mark = uuid.uuid4().hex
    process = start(MLB_BATCH, "run", str(job_file(tmp_path)), MARK=mark)
    until(lambda: any(at_work in command for command in descendants(process.pid).values()), at_work)
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
