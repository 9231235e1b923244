"""Death of anything, again and again: readers, captioners, nodes, drivers and the store, under whole runs of 400 clips.

After each, the output holds what a run without faults leaves, and nothing else (see `hold`).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import s3fs
from chaos import DeadlyProxy, Kills, Onlooker, Said, committed, hold, killed, leftovers, rows, texts
from commands import CAPTIONER, MLB_BATCH, RAYLET, READER, descendants, found, kill_all, start, until
from ledger_rows import FINGERPRINT, annotation
from noted_run import ABORT, DIE, HANG, RAISE, poisoned
from ray_nodes import Head, healthy, join, ray, serving
from s3server import S3Server, kill_server, restart_server, start_server
from small_jobs import clips, job_file, manifest
from writer_process import Writer

from mlb_batch.chain.strikes import STRIKES
from mlb_batch.ledger import Ledger, publish, read_current, verify

pytestmark = [pytest.mark.whole_run, pytest.mark.slow, pytest.mark.timeout(3600)]
CLIPS, FEW = 900, 40
COMMIT_ROWS = 16
READERS = 3
DOWN_S = 10
ROOM_BYTES, OVER_BYTES, BALLOONS = 4 << 30, 1 << 29, 3
VIDEO_S = 5.0  # what reading a video may take, where one hangs
ATTEMPTS = 3
# Which clip is poison, and what it ends as.
POISON = {"abort.mp4": "decoder_crash", "hang.mp4": "timeout", "die.mp4": "model_error", "raise.mp4": "model_error"}
OWN_RAY = {"RAY_ADDRESS": ""}  # its workers have this process's environment
NOTED_RUN = str(Path(__file__).with_name("noted_run.py"))
ONE_READER = ("--set", "cluster.read.num_cpus=0.5", "--set", "cluster.read.concurrency=[1, 1]")
QUICK = {"read": {"num_cpus": 0.25, "concurrency": [READERS, READERS]}}


@dataclass(frozen=True)
class Clean:
    """A job, and what became of it without faults."""

    folder: Path
    said: Said
    wall_s: float

    def command(self, output: str) -> list[str]:
        return [MLB_BATCH, "run", str(self.folder / "job.yaml"), "--set", f"output.uri={output}"]

    def noted(self, notes: Path, output: str) -> list[str]:
        return [sys.executable, NOTED_RUN, str(notes), *self.command(output)[2:]]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Head]:
    """One that outlives the runs, as in a submitted job; and who kills a driver need not wait for a Ray to start."""
    head = serving(healthy, 2)
    try:
        until(lambda: alive(head.address) == 1, "its node")  # which is there a moment later
        yield head
    finally:
        kill_all(head.process)


def clean_run(cluster: Head, folder: Path, **changes: Any) -> Clean:
    output = {"uri": str(folder / "out"), "commit_rows": COMMIT_ROWS}
    job = job_file(folder, cluster=QUICK, output=output, **changes)
    begun_s, process = time.monotonic(), start(MLB_BATCH, "run", str(job), RAY_ADDRESS=cluster.address)
    try:
        _, err = process.communicate(timeout=1200)
    finally:
        kill_all(process)
    assert process.returncode == 0, err[-2000:]
    return Clean(folder, texts(str(folder / "out")), time.monotonic() - begun_s)


@pytest.fixture(scope="module")
def many(cluster: Head, tmp_path_factory: pytest.TempPathFactory) -> Clean:
    folder = tmp_path_factory.mktemp("many")
    clips(folder / "videos", CLIPS)
    return clean_run(cluster, folder)


@pytest.fixture(scope="module")
def few(cluster: Head, tmp_path_factory: pytest.TempPathFactory) -> Clean:
    folder = tmp_path_factory.mktemp("few")
    clips(folder / "videos", FEW)
    return clean_run(cluster, folder)


@pytest.fixture
def begin(cluster: Head) -> Iterator[Callable[..., Any]]:
    """Starts commands on the cluster; whatever is left of them in the end is killed."""
    with contextlib.ExitStack() as stack:

        def one(*command: str, **environment: str) -> Any:
            process = start(*command, **{"RAY_ADDRESS": cluster.address, **environment})
            stack.callback(kill_all, process)
            return process

        yield one


def ended(process: Any, timeout_s: float = 1200) -> tuple[int, dict[str, Any], str]:
    """A command's exit code, the JSON of its last line, and stderr."""
    out, err = process.communicate(timeout=timeout_s)
    return process.returncode, json.loads(out.splitlines()[-1]) if out.strip() else {}, err[-3000:]


# --- actors and nodes


@pytest.mark.parametrize("seed", range(5))
def test_readers_die_every_two_seconds_and_who_looks_on_sees_nothing_of_it(
    seed: int, many: Clean, cluster: Head, tmp_path: Path, begin: Any
) -> None:
    out, begun_s = str(tmp_path / "out"), time.monotonic()
    process, every_s = begin(*many.command(out)), max(1.5, many.wall_s / 30)  # on a slow machine, everything is slow
    with Onlooker(out) as onlooker, Kills(cluster.process, READER, every_s, seed, at_work=has_read) as kills:
        code, _, err = ended(process)
    assert code == 0, err
    assert len(kills.pids) >= 5
    hold(out, many.said)
    assert onlooker.looks > 10 and onlooker.bad == []
    assert time.monotonic() - begun_s < 2 * many.wall_s


def has_read(pid: int) -> bool:
    """Whose child has come up: what a dead reader leaves is the next one's first clip, and after three it is guilty."""
    return any(age_s(child) > 2 for child in descendants(pid))


def age_s(pid: int) -> float:
    with contextlib.suppress(OSError):
        begun_ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
        return float(Path("/proc/uptime").read_text().split()[0]) - int(begun_ticks) / os.sysconf("SC_CLK_TCK")
    return 0.0  # it ended while we looked


@pytest.mark.parametrize("seed", range(5))
def test_captioners_die_one_of_them_with_the_model_half_loaded(
    seed: int, many: Clean, cluster: Head, tmp_path: Path, begin: Any
) -> None:
    out, notes, begun_s = str(tmp_path / "out"), tmp_path / "notes", time.monotonic()
    process = begin(*many.noted(notes, out))
    until(lambda: [pid for pid in found(cluster.process, CAPTIONER) if imports_torch(pid)], "a captioner that loads")
    assert committed(out) == 0 and killed(found(cluster.process, CAPTIONER)[0])
    chance, dead, total = random.Random(seed), 1, len(many.said)
    for share in (0.15, 0.3, 0.45, 0.6, 0.75):
        least = (share + chance.uniform(0, 0.1)) * total
        until(lambda least=least: committed(out) > least, "the moment")
        until(lambda: found(cluster.process, CAPTIONER), "a captioner")
        dead += killed(found(cluster.process, CAPTIONER)[0])
    code, _, err = ended(process)
    assert (code, dead) == (0, 6), err
    hold(out, many.said)
    assert len(answered(notes, "loaded")) <= dead, "the model was loaded more often than its processes died"
    assert time.monotonic() - begun_s < 3 * many.wall_s
    assert rows(out, "errors") == []
    died_on = Counter(answered(notes, "asked")) - Counter(answered(notes))
    assert max(died_on.values(), default=0) < STRIKES, f"how often captioners died on innocent clips: {died_on}"


def imports_torch(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "libtorch_cpu" in Path(f"/proc/{pid}/maps").read_text()
    return False


@pytest.mark.parametrize("seed", range(5))
def test_a_node_dies_and_so_does_the_one_that_comes_for_it(seed: int, many: Clean, tmp_path: Path, begin: Any) -> None:
    """Neither node has room for both actors, so each time one dies, and only another node can take it. Where it was the
    reader, what it has read by then may be all, and the captioner ends alone.
    """
    head = serving(healthy, 1)
    with contextlib.ExitStack() as stack:
        stack.callback(kill_all, head.process)
        out = str(tmp_path / "out")
        worker = join(head, 1)
        stack.callback(kill_all, worker)
        until(lambda: alive(head.address) == 2, "the second node")
        run = begin(*many.command(out), *ONE_READER, RAY_ADDRESS=head.address)
        kills = 0
        for share in (0.02 + 0.02 * seed, 0.3 + 0.05 * seed):  # while a death is found out, the other node goes on
            there = lambda worker=worker: found(worker, "MapBatches")  # noqa: E731
            until(lambda there=there: there() or run.poll() is not None, "an actor on the second node")
            if not there():
                break
            until(lambda least=share: committed(out) > least * len(many.said), "the moment")
            assert killed(found(worker, RAYLET)[0])
            kills += 1
            until(lambda: alive(head.address) == 1, "the news of its death")
            worker = join(head, 1)  # seen in what it does: the list of nodes is seconds behind
            stack.callback(kill_all, worker)
        code, _, err = ended(run)
        assert code == 0 and kills, err
        hold(out, many.said)


def alive(address: str) -> int:
    """Nodes that the head knows to live."""
    said = ray("status", "--address", address).stdout
    return said.split("Pending:")[0].split("Active:")[-1].count("node_")


# --- the driver


def test_a_driver_killed_at_ten_points_computes_at_most_one_commit_unit_again_each_time(
    many: Clean, tmp_path: Path, begin: Any
) -> None:
    out, notes = str(tmp_path / "out"), tmp_path / "notes"
    command = many.noted(notes, out)
    total, again = len(many.said), Counter[int]()
    for percent in range(5, 100, 10):
        process = begin(*command)
        until(lambda least=percent: committed(out) * 100 >= least * total, "the moment")
        assert process.poll() is None and killed(process.pid)
        process.communicate(timeout=60)
        again[percent] = len(answered(notes)) - len(set(answered(notes)))
    code, summary, err = ended(begin(*command))
    assert code == 0, err
    assert summary["annotated"] + summary["skipped_done"] == total
    hold(out, many.said)
    twice = Counter(answered(notes))
    assert len(twice) == total
    assert sum(twice.values()) - total <= 10 * COMMIT_ROWS, f"computed again: {sum(twice.values()) - total}, {again}"


def answered(notes: Path, what: str = "answered") -> list[str]:
    """The annotation ids that captioners noted, as often as they did."""
    lines = notes.read_text().splitlines() if notes.exists() else []
    return [one for line in lines if line.startswith(what) for one in line.split()[1:]]


WINDOWS = [
    ("/annotations/.*part-", "before"), ("/annotations/.*part-", "half"), ("/annotations/.*part-", "after"),
    ("/ledger.json", "before"), ("/ledger.json", "after"), ("/current.json", "before"), ("/current.json", "after"),
]  # fmt: skip


@pytest.mark.parametrize("turn", range(3))
@pytest.mark.parametrize(("pattern", "moment"), WINDOWS[:5])
def test_a_writer_dies_in_the_window_of_a_commit(pattern: str, moment: str, turn: int, s3: S3Server) -> None:
    """As below, with the ledger alone."""
    out = f"s3://{s3.make_bucket()}/out"
    with (
        DeadlyProxy(s3.port, pattern, moment, 1 + turn) as proxy,
        Writer(out, 16, 4, environment=s3.environment(proxy.port)) as writer,
    ):
        proxy.kill = writer.process.kill
        assert proxy.caught.wait(60), "the window never came"
        assert writer.process.wait(60) == -signal.SIGKILL
    commits = turn if "part" in pattern and moment != "after" else 1 + turn
    assert committed(out) == 4 * commits, "half a commit is seen"
    assert commits == 0 or verify(out) == []  # of an output without anything verify says so, and nothing else
    assert leftovers(out) == []
    with Writer(out, 16, 4) as writer:
        said = writer.hear_all()
    assert said[-1] == "done" and len(said) == 6 - commits, "what was committed was written again"
    ids = [row["annotation_id"] for row in rows(out)]
    assert len(ids) == len(set(ids)) == 16 and verify(out) == []


@pytest.mark.parametrize("turn", range(3))
@pytest.mark.parametrize(("pattern", "moment"), WINDOWS)
def test_a_driver_dies_in_the_window_of_a_commit(
    pattern: str, moment: str, turn: int, s3: S3Server, few: Clean, begin: Any
) -> None:
    out = f"s3://{s3.make_bucket()}/out"
    Ledger(out, FINGERPRINT, "older").commit([annotation(1)], [])  # another fingerprint, which current.json names
    publish(out, FINGERPRINT, "older")
    nth = 1 if "current" in pattern else 1 + turn  # it is written once
    with DeadlyProxy(s3.port, pattern, moment, nth) as proxy:
        process = begin(*few.command(out), **OWN_RAY, **s3.environment(proxy.port))
        proxy.kill = process.kill
        until(lambda: proxy.caught.is_set() or process.poll() is not None, "the window")
        process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    current = read_current(out)
    assert current is not None
    new = (pattern, moment) == ("/current.json", "after")
    assert (current["fingerprint"] != FINGERPRINT) == new
    ours = [row for row in rows(out) if row["fingerprint"] != FINGERPRINT]
    if "annotations" in pattern:
        assert len(ours) == COMMIT_ROWS * (nth if moment == "after" else nth - 1), "half a commit is seen"
    assert verify(out) == []
    code, summary, err = ended(begin(*few.command(out), **OWN_RAY, **s3.environment()))
    assert code == 0, err
    assert summary["skipped_done"] == len(ours)
    current = read_current(out)
    assert current is not None and current["fingerprint"] == summary["fingerprint"]
    hold(out, few.said, summary["fingerprint"])


@pytest.mark.parametrize("turn", range(10))
def test_of_two_drivers_that_start_at_once_both_end_well_or_one_is_refused(
    turn: int, few: Clean, tmp_path: Path, begin: Any
) -> None:
    out = str(tmp_path / "out")
    both = [begin(*few.command(out)) for _ in range(2)]
    ends = sorted((ended(one) for one in both), key=lambda end: end[0])
    assert ends[0][0] == 0, ends
    assert ends[1][0] == 0 or (ends[1][0] == 2 and re.search(r"another run .*: run .* on .*\(process", ends[1][2])), (
        ends
    )
    hold(out, few.said)


# --- the store


@pytest.mark.parametrize("commits", range(1, 4))
def test_the_store_is_killed_and_comes_back(
    commits: int, few: Clean, begin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.ExitStack() as stack:
        server = start_server(stack, "bluestore")
        if server.kind != "ceph":
            pytest.skip("what moto holds is gone when it is killed")
        s3fs.S3FileSystem.clear_instance_cache()
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        out = f"s3://{server.make_bucket()}/out"
        process = begin(*few.command(out), **OWN_RAY)
        until(lambda: committed(out) >= commits * COMMIT_ROWS, "a few commits")
        before = {row["annotation_id"] for row in rows(out)}
        kill_server(server)
        time.sleep(DOWN_S)  # the fault itself, not a wait for something
        restart_server(stack, server)
        code, _, err = ended(process)
        if code != 0:
            assert code == 1 and "run the same command" in err, err
            code, _, err = ended(begin(*few.command(out), **OWN_RAY))
        assert code == 0, err
        assert before <= {row["annotation_id"] for row in rows(out)}
        hold(out, few.said)


# --- poison


def test_one_clip_in_a_hundred_is_poison_and_the_others_are_annotated(
    cluster: Head, tmp_path: Path, begin: Any
) -> None:
    clean = poisoned_job(cluster, tmp_path)
    out, notes = str(tmp_path / "poisoned"), tmp_path / "notes"
    command = clean.noted(notes, out)
    begun_s = time.monotonic()
    code, first, err = ended(begin(*command))
    extra_s = time.monotonic() - begun_s - clean.wall_s
    assert code == 3, err
    good = {key: text for key, text in clean.said.items() if key[0] not in POISON}
    hold(out, good)
    assert extra_s < ATTEMPTS * len(POISON) * VIDEO_S
    while first["to_retry"]:
        code, first, err = ended(begin(*command))
        assert code == 3, err
    hold(out, good)
    errors = rows(out, "errors")
    attempts = Counter(row["uri"].rsplit("/", 1)[-1] for row in errors)
    assert {(row["uri"].rsplit("/", 1)[-1], row["error_class"]) for row in errors} == set(POISON.items())
    assert max(attempts.values()) <= ATTEMPTS and all(row["message"] for row in errors)
    deadly = next(row["annotation_id"] for row in errors if row["uri"].endswith("die.mp4"))
    assert answered(notes, "asked").count(deadly) <= ATTEMPTS, "a captioner died of it more often"
    code, last, err = ended(begin(*command))
    assert (code, last["rows_written"], last["errors"]) == (3, 0, len(POISON)), err


def poisoned_job(cluster: Head, folder: Path) -> Clean:
    """And what its clips come to where nothing obeys them."""
    videos = clips(folder / "videos", CLIPS)
    for name, n in zip(POISON, range(CLIPS // 8, CLIPS, CLIPS // 4), strict=True):
        videos[n] = videos[n].rename(folder / "videos" / name)
        videos[n].write_bytes(poisoned(videos[n].read_bytes(), {"abort.mp4": ABORT, "hang.mp4": HANG}.get(name, b"")))
    said = {"die.mp4": DIE, "raise.mp4": RAISE}
    lines = [{"uri": str(path), "title": said.get(path.name, "A clip")} for path in videos]
    given = {"manifest": str(manifest(folder / "videos.jsonl", lines)), "columns": ["title"]}
    prompts = [{"id": "caption", "kind": "caption", "text": "{title}. Describe."}]
    return clean_run(cluster, folder, input=given, prompts=prompts, limits={"video_s": VIDEO_S})


# --- memory


def test_a_run_completes_though_ray_kills_for_memory(many: Clean, tmp_path: Path, begin: Any) -> None:
    """Ray's threshold lies a little above what is in use here, and a balloon goes over it again and again."""
    out = str(tmp_path / "out")
    total, used = memory()
    most = used + ROOM_BYTES
    settings = {"RAY_memory_usage_threshold": f"{most / total:.4f}", "RAY_memory_monitor_refresh_ms": "100"}
    process = begin(*many.command(out), **OWN_RAY, **settings)
    until(lambda: committed(out) > 0, "the first commit")
    for _ in range(BALLOONS):
        there = set(found(process, "MapBatches"))
        with balloon(most):
            until(lambda there=there: there.difference(found(process, "MapBatches")), "a death")
        until(lambda: found(process, CAPTIONER), "another captioner")
    assert process.poll() is None, "it was over before the last balloon"
    code, _, err = ended(process)
    assert code == 0, err
    hold(out, many.said)


def memory() -> tuple[int, int]:
    """Bytes of this machine, and those in use."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    total, free = (int(lines[name].split()[0]) << 10 for name in ("MemTotal", "MemAvailable"))
    return total, total - free


@contextlib.contextmanager
def balloon(most: int) -> Iterator[None]:
    """A process that takes memory until more than `most` bytes are in use."""
    code = f"import time; held = b'x' * {max(0, most - memory()[1]) + OVER_BYTES}; time.sleep(600)"
    process = start(sys.executable, "-c", code)
    try:
        yield
    finally:
        kill_all(process)
