"""`ray job submit` to a real head with its job server and token authentication; stopped on the way, submitted again."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import kill_all, until
from ray.job_submission import JobStatus, JobSubmissionClient
from ray_nodes import has_jobs, ray, serving
from small_jobs import clips, ids, job_file, table

pytestmark = pytest.mark.whole_run

PROJECT = Path(__file__).parents[1]
VIDEOS, PROMPTS = 24, 2
ROWS = VIDEOS * PROMPTS


@pytest.fixture(scope="module")
def job_server() -> Iterator[str]:
    """A head of its own, where a stopped job gets time to commit (Ray's own default is 3 s); its address."""
    head = serving(has_jobs, 2, RAY_JOB_STOP_WAIT_TIME_S="30")
    yield head.dashboard
    kill_all(head.process)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project as a working directory: the package and the job script, installed nowhere."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("mlb_batch", "jobs"):
        shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def submit(
    address: str, shipped: Path, name: str, job: Path, change: str = "output.commit_rows=4"
) -> subprocess.CompletedProcess[str]:
    return ray(
        "job", "submit", "--address", address, "--no-wait", "--submission-id", name, "--working-dir", str(shipped),
        "--", "python", "jobs/annotate.py", str(job), "--set", change,
    )  # fmt: skip


def test_a_submission_that_is_stopped_and_submitted_again_loses_and_doubles_nothing(
    job_server: str, shipped: Path, tmp_path: Path
) -> None:
    clips(tmp_path / "videos", VIDEOS)
    # Long enough answers that the stop comes in the middle.
    job, out = job_file(tmp_path, generate={"max_new_tokens": 32}), tmp_path / "out"
    first = submit(job_server, shipped, "first", job)
    assert first.returncode == 0, first.stderr
    until(lambda: ids(out), "the first commit")
    client = JobSubmissionClient(job_server)  # `ray job`, without the seconds that it takes to start
    client.stop_job("first")
    until(lambda: client.get_job_status("first") == JobStatus.STOPPED, "the stop")
    before = ids(out)
    assert 0 < len(before) == len(set(before)) < ROWS
    stopped = json.loads(next((out / "runs").glob("*/summary.json")).read_text())
    assert (stopped["stopped"], stopped["exit_code"]) == ("SIGTERM", 143)
    assert submit(job_server, shipped, "second", job).returncode == 0
    until(lambda: client.get_job_status("second") == JobStatus.SUCCEEDED, "the end of the second submission")
    assert len(ids(out)) == len(set(ids(out))) == ROWS
    assert {row["run_id"] for row in table(out) if row["annotation_id"] in before} == {stopped["run_id"]}
    logs = ray("job", "logs", "--address", job_server, "second").stdout
    assert f'"skipped_done": {len(before)}' in logs


def test_an_output_that_would_be_deleted_with_the_shipped_folder_is_refused(
    job_server: str, shipped: Path, tmp_path: Path
) -> None:
    clips(tmp_path / "videos", 1)
    assert submit(job_server, shipped, "relative", job_file(tmp_path), "output.uri=annotations").returncode == 0
    client = JobSubmissionClient(job_server)
    until(lambda: client.get_job_status("relative") == JobStatus.FAILED, "the refusal")
    logs = ray("job", "logs", "--address", job_server, "relative").stdout
    assert "annotations would lie in Ray's copy of the working directory" in logs
    assert client.get_job_info("relative").driver_exit_code == 2


def test_without_the_token_nothing_answers(job_server: str) -> None:
    for path in ("/api/jobs/", "/api/version", "/nodes?view=summary"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(job_server + path, timeout=30)
        assert refused.value.code in (401, 403)
