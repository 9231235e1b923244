"""The kill drill: SIGKILL at random moments on the driver, a worker or the raylet, then the same command again.

Whatever died, the second command ends with exactly one row for every annotation, and the texts of a run without faults.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import CAPTIONER, MLB_BATCH, RAYLET, READER, found, kill_all, mlb_batch, start, until
from ray_nodes import healthy, join, ray, serving
from small_jobs import clips, ids, job_file, spec, texts

from mlb_batch import run
from mlb_batch.ledger import verify

pytestmark = pytest.mark.whole_run

VIDEOS, PROMPTS = 24, 2
ROWS = VIDEOS * PROMPTS
COMMIT_ROWS = 8
VICTIMS = {"reader": READER, "captioner": CAPTIONER, "raylet": RAYLET}
KILLS = [(victim, seed) for seed in range(10, 13) for victim in ("driver", *VICTIMS)]


def wait_for(process: subprocess.Popen[str], part: str) -> int:
    """The first process under this one whose command line has `part`; fails if the command ends before."""
    while process.poll() is None:
        if hit := found(process, part):
            return hit[0]
        time.sleep(0.05)
    raise AssertionError(f"the command ended before {part} was there: {process.communicate()[1][-2000:]}")


@pytest.fixture(scope="module")
def faultless(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[tuple[str, str], str], float]:
    """The videos, what a run without faults says of them, and how long it takes from its first actor on."""
    folder = tmp_path_factory.mktemp("drill")
    clips(folder / "videos", VIDEOS)
    process = start(MLB_BATCH, "run", str(job_file(folder)))
    wait_for(process, READER)
    begun_s = time.monotonic()
    process.communicate(timeout=300)
    assert process.returncode == 0
    said = texts(folder / "out")
    assert len(said) == ROWS
    return folder, said, time.monotonic() - begun_s


def killed(
    victim: str, moment_s: float, command: list[str], commands: list[subprocess.Popen[str]]
) -> tuple[int, str] | None:
    """Run the command, kill the victim `moment_s` after the first actor is there; exit code and stderr.

    None where the victim had done its part and was gone by then.
    """
    process = start(*command)
    commands.append(process)
    wait_for(process, READER)
    time.sleep(moment_s)  # the fault's moment, drawn by seed: nothing is awaited
    if victim == "driver":
        process.kill()
    else:
        there = found(process, VICTIMS[victim])
        if not there:
            kill_all(process)
            return None
        os.kill(there[0], signal.SIGKILL)
    _, err = process.communicate(timeout=300)
    return process.returncode, err


def drill(victim: str, seed: int, faultless: Any, out: Path, commands: list[subprocess.Popen[str]]) -> None:
    folder, said, whole_s = faultless
    job = job_file(folder)
    settings = ["--set", f"output.uri={out}", "--set", f"output.commit_rows={COMMIT_ROWS}"]
    moment_s = random.Random(seed).uniform(0.05, 0.7) * whole_s
    while (ended := killed(victim, moment_s, [MLB_BATCH, "run", str(job), *settings], commands)) is None:
        assert moment_s > 0.01, f"{victim} was never seen"
        shutil.rmtree(out, ignore_errors=True)
        moment_s /= 2
    code, err = ended
    before = ids(out)
    assert len(before) == len(set(before))
    if victim in ("reader", "captioner"):
        assert code == 0 and len(before) == ROWS, f"a dead worker is not the end of a run: {err[-2000:]}"
    again, summary, err = mlb_batch("run", str(job), *settings)
    assert again == 0, err[-2000:]
    assert summary["skipped_done"] == len(before) and summary["annotated"] == ROWS - len(before), "done work came again"
    assert len(ids(out)) == len(set(ids(out))) == ROWS
    assert texts(out) == said
    assert verify(str(out)) == []


@pytest.mark.slow
def test_killed_then_told_to_stop_then_left_alone(
    ray_cluster: None, tmp_path: Path, commands: list[subprocess.Popen[str]]
) -> None:
    """SIGKILL on the driver behind its first commit, SIGTERM on the next behind another; the third does the rest."""
    clips(tmp_path / "videos", VIDEOS)
    said = texts(Path(run(spec(tmp_path, output=str(tmp_path / "faultless")))["output"]))
    out, kept = tmp_path / "out", 0
    for number, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143)):
        process = start(MLB_BATCH, "run", str(job_file(tmp_path)), "--set", f"output.commit_rows={COMMIT_ROWS}")
        commands.append(process)
        until(lambda: len(ids(out)) > kept or process.poll() is not None, "a commit")  # noqa: B023  (asked at once)
        process.send_signal(number)
        told, err = process.communicate(timeout=60)
        assert process.returncode == code, err[-2000:]
        kept, before = len(ids(out)), kept
        assert before < kept < ROWS
    assert all(line.startswith("done ") for line in err.splitlines()), err
    assert f'"rows_written": {kept - before}' in told and '"stopped": "SIGTERM"' in told
    code, summary, err = mlb_batch("run", str(job_file(tmp_path)))
    assert (code, summary["skipped_done"], summary["annotated"]) == (0, kept, ROWS - kept), err[-2000:]
    assert texts(out) == said and len(ids(out)) == len(set(ids(out))) == ROWS
    assert verify(str(out)) == []


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "seed"), KILLS)
def test_killed_at_many_moments(
    victim: str, seed: int, faultless: Any, tmp_path: Path, commands: list[subprocess.Popen[str]]
) -> None:
    drill(victim, seed, faultless, tmp_path / "out", commands)


@pytest.mark.slow
@pytest.mark.parametrize("to", [os.kill, os.killpg])
def test_sigterm_commits_what_is_finished_and_the_next_run_does_the_rest(
    faultless: Any, tmp_path: Path, commands: list[subprocess.Popen[str]], to: Callable[[int, int], None]
) -> None:
    """To the driver alone, or to Ray's processes too, as `timeout` and systemd send it."""
    folder, said, _ = faultless
    settings = ["--set", f"output.uri={tmp_path / 'out'}", "--set", "output.commit_rows=10"]
    process = start(MLB_BATCH, "run", str(job_file(folder)), *settings)
    commands.append(process)
    until(lambda: len(ids(tmp_path / "out")) > 0 or process.poll() is not None, "the first commit")
    to(process.pid, signal.SIGTERM)
    asked_s = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143 and time.monotonic() - asked_s < 30, err[-2000:]
    committed = len(ids(tmp_path / "out"))
    assert f'"rows_written": {committed}' in out and '"stopped": "SIGTERM"' in out
    code, summary, err = mlb_batch("run", str(job_file(folder)), *settings)
    assert (code, summary["skipped_done"]) == (0, committed), err[-2000:]
    assert texts(tmp_path / "out") == said and len(ids(tmp_path / "out")) == ROWS


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_node_that_dies_takes_nothing_with_it(
    seed: int, faultless: Any, tmp_path: Path, commands: list[subprocess.Popen[str]]
) -> None:
    folder, said, whole_s = faultless
    head = serving(healthy, 2)
    commands.append(head.process)
    worker = join(head, 2)
    commands.append(worker)
    until(lambda: ray("status", "--address", head.address).stdout.count("node_") >= 2, "the second node")
    out = tmp_path / "out"
    command = start(MLB_BATCH, "run", str(job_file(folder)), "--set", f"output.uri={out}", RAY_ADDRESS=head.address)
    commands.append(command)
    wait_for(worker, "MapBatches")
    time.sleep(random.Random(seed).uniform(0.05, 0.7) * whole_s)
    os.kill(wait_for(worker, RAYLET), signal.SIGKILL)
    _, err = command.communicate(timeout=400)
    assert command.returncode == 0, err[-2000:]
    assert len(ids(out)) == len(set(ids(out))) == ROWS and texts(out) == said


# What a run remembers beside its rows, twice each: by chance all of it would seldom lie on one node.
REMEMBERS = """
import time
from ray import get_runtime_context, nodes
from ray._private.state import actors
from mlb_batch.chain.cluster import connected
from mlb_batch.chain.pace import Pace
from mlb_batch.chain.purse import Grants
from mlb_batch.chain.strikes import Strikes
with connected():
    while len(nodes()) < 2:
        time.sleep(0.1)
    kept = [(Strikes(), Pace(1), Grants(1, 0, None, None)) for _ in range(2)]
    while not all(one["State"] == "ALIVE" for one in actors().values()):
        time.sleep(0.1)
    here = get_runtime_context().get_node_id()
    print([one["Address"]["NodeID"] == here for one in actors().values()])
"""


@pytest.mark.slow
def test_what_a_run_remembers_lies_on_the_node_of_its_driver(commands: list[subprocess.Popen[str]]) -> None:
    """Another may be on spot."""
    head = serving(healthy, 1)
    commands += [head.process, join(head, 1)]
    driver = start(sys.executable, "-c", REMEMBERS, RAY_ADDRESS=head.address)
    commands.append(driver)
    said, err = driver.communicate(timeout=120)
    assert said == f"{[True] * 6}\n", err


@pytest.mark.slow
def test_a_ray_that_does_not_come_up_is_started_again(tmp_path: Path, commands: list[subprocess.Popen[str]]) -> None:
    clips(tmp_path / "videos", 1)
    process = start(MLB_BATCH, "run", str(job_file(tmp_path)))
    commands.append(process)
    stopped = wait_for(process, RAYLET)
    os.kill(stopped, signal.SIGSTOP)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0 and len(ids(tmp_path / "out")) == PROMPTS, err[-2000:]
    until(lambda: not Path(f"/proc/{stopped}").exists(), "the end of the first one")
