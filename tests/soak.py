"""The soak: jobs on a real S3 server, one after the other, with a fault every few seconds, for as long as it is told.

    python tests/soak.py [--minutes 30] [--seed 0] [--clips 400]

Every round is a new output. Its command is run again for as long as it does not end well, as a scheduler would; each
fault is a line, and so is each round. In the end the last line of stdout is a JSON object, and the exit code is 0 only
if every round held what it has to (see chaos.hold) and memory stayed flat.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import conftest
from chaos import Said, hold, killed, rows, texts
from commands import CAPTIONER, MLB_BATCH, READER, descendants, found, kill_all, start
from noted_run import ABORT, DIE, HANG, poisoned
from s3server import S3Server, start_server
from small_jobs import clips, job_file, manifest
from storm import Storm

NOTED_RUN = str(Path(__file__).with_name("noted_run.py"))
EVERY_S, FAULTS_A_RUN = 6.0, 10  # on a slow machine, as many faults in a run as on a fast one
KINDS = [("slow_down", 0.3), ("error_500", 0.1), ("reset", 0.1), ("truncate", 0.2)]
WEATHER_S, OUTAGE_S = 8.0, 5.0
POISON = {"abort.mp4", "hang.mp4", "die.mp4"}
VIDEO_S = 15.0
WARM_S = 20.0  # a process is measured from this age on
GROWTH = 1.15  # the last third of the soak over the first
ROLES = {"driver": "noted_run.py", "reader": READER, "captioner": CAPTIONER}


class Log:
    """A line an event, with the time since the start."""

    def __init__(self) -> None:
        self._begun_s = time.monotonic()
        self.faults: Counter[str] = Counter()

    @property
    def now_s(self) -> float:
        return time.monotonic() - self._begun_s

    def say(self, text: str) -> None:
        print(f"{self.now_s:7.1f} s  {text}", flush=True)

    def fault(self, kind: str, text: str = "") -> None:
        self.faults[kind] += 1
        self.say(f"fault: {kind} {text}".rstrip())


class Memory:
    """Resident memory by role, of processes that are warm, in the order in which it was seen."""

    def __init__(self) -> None:
        self.seen: dict[str, list[tuple[float, int]]] = defaultdict(list)
        self._since_s: dict[int, float] = {}

    def look(self, process: subprocess.Popen[str], now_s: float) -> None:
        for pid, line in {process.pid: ROLES["driver"], **descendants(process.pid)}.items():
            role = next((role for role, part in ROLES.items() if part in line), None)
            if role is not None and now_s - self._since_s.setdefault(pid, now_s) > WARM_S:
                with contextlib.suppress(OSError):
                    self.seen[role].append((now_s, rss_mb(pid)))

    def thirds(self, begun_s: float, ended_s: float) -> dict[str, list[float]]:
        """The median of each third of the soak, in MB."""
        edges_s = [begun_s + n * (ended_s - begun_s) / 3 for n in range(4)]
        return {role: [median(part) for since_s, until_s in pairwise(edges_s)
                       if (part := [mb for at_s, mb in seen if since_s <= at_s < until_s])]
                for role, seen in self.seen.items()}  # fmt: skip


def rss_mb(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") >> 20


class Faults:
    """One fault after the other, on whatever runs at the moment."""

    def __init__(self, storm: Storm, seed: int, every_s: float, log: Log, memory: Memory) -> None:
        self.process: subprocess.Popen[str] | None = None
        self._storm, self._chance, self._log, self._memory = storm, random.Random(seed), log, memory
        self._every_s = every_s
        self._over = threading.Event()
        self.thread = threading.Thread(target=self._go_on, daemon=True)

    def _go_on(self) -> None:
        next_s = self._log.now_s + self._every_s
        while not self._over.wait(2.0):
            process = self.process
            if process is None or process.poll() is not None:
                continue
            self._memory.look(process, self._log.now_s)
            if self._log.now_s > next_s:
                self._one(process)
                next_s = self._log.now_s + self._every_s * self._chance.uniform(0.5, 1.5)

    def _one(self, process: subprocess.Popen[str]) -> None:
        kinds = ["reader", "captioner", "driver", "weather", "outage"]
        kind = self._chance.choices(kinds, [8, 4, 1, 4, 1])[0]
        if kind in ("reader", "captioner"):
            there = sorted(found(process, ROLES[kind]))
            if there and killed(one := self._chance.choice(there)):
                self._log.fault(f"kill {kind}", f"process {one}")
        elif kind == "driver" and killed(process.pid):
            self._log.fault("kill driver", f"process {process.pid}")
        elif kind == "weather":
            weather, share = self._chance.choice(KINDS)
            self._log.fault(weather, f"{share:.0%} of requests for {WEATHER_S:g} s")
            self._blow(weather, share, WEATHER_S)
        elif kind == "outage":
            self._log.fault("outage", f"nothing answers for {OUTAGE_S:g} s")
            self._blow("reset", 1.0, OUTAGE_S)

    def _blow(self, weather: str, share: float, for_s: float) -> None:
        self._storm.become(weather, share)
        self._over.wait(for_s)
        self._storm.become("calm", 0.0)

    def __enter__(self) -> Faults:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.thread.join(60)


def make_job(folder: Path, server: S3Server, bucket: str, count: int) -> Path:
    """Videos in the bucket, three of them poison."""
    fs = server.client()
    videos = clips(folder / "made", count)
    for name, n in zip(sorted(POISON), range(count // 4, count, count // 4), strict=False):
        videos[n] = videos[n].rename(folder / "made" / name)
        videos[n].write_bytes(poisoned(videos[n].read_bytes(), {"abort.mp4": ABORT, "hang.mp4": HANG}.get(name, b"")))
    for path in videos:
        fs.pipe_file(f"{bucket}/in/{path.name}", path.read_bytes())
    said = {"die.mp4": DIE}
    lines = [{"uri": f"s3://{bucket}/in/{path.name}", "title": said.get(path.name, "A clip")} for path in videos]
    given = {"manifest": str(manifest(folder / "videos.jsonl", lines)), "columns": ["title"],
             "allow": [f"s3://{bucket}/in/"]}  # fmt: skip
    prompts = [{"id": "caption", "kind": "caption", "text": "{title}. Describe."}]
    read = {"num_cpus": 0.25, "concurrency": [2, 2]}
    return job_file(folder, input=given, prompts=prompts, cluster={"read": read}, limits={"video_s": VIDEO_S})


@contextlib.contextmanager
def running(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    process = start(*command, **environment)
    try:
        yield process
    finally:
        kill_all(process)


def round_of(command: list[str], environment: dict[str, str], faults: Faults, log: Log) -> int:
    """The command, again until it ends with nothing left to try; how often it was run."""
    for runs in range(1, 100):
        with running(command, environment) as process:
            faults.process = process
            out, err = process.communicate(timeout=1200)
            faults.process = None
        last = json.loads(out.splitlines()[-1]) if process.returncode in (0, 3) else {}
        said = err.strip().splitlines()[-1] if err.strip() else ""
        log.say(f"run {runs} ended with {process.returncode}" + (f": {said}" if not last else ""))
        assert process.returncode in (0, 1, 3, -9), err[-3000:]
        if last and not last["to_retry"]:
            return runs
    raise AssertionError("it never ended")


def soak(minutes: float, seed: int, count: int, folder: Path, log: Log) -> dict[str, Any]:
    memory, rounds, annotated = Memory(), 0, 0
    with contextlib.ExitStack() as stack:
        server = start_server(stack)
        os.environ.update(server.environment())
        bucket = server.make_bucket()
        job = make_job(folder, server, bucket, count)
        base = [sys.executable, NOTED_RUN, str(folder / "notes"), str(job), "--set", "output.commit_rows=16"]
        storm = stack.enter_context(Storm(server.port, seed=seed))
        begun_s = log.now_s
        said = without_faults(folder, job, log)
        every_s = max(EVERY_S, (log.now_s - begun_s) / FAULTS_A_RUN)
        faults = stack.enter_context(Faults(storm, seed, every_s, log, memory))
        begun_s = log.now_s
        while log.now_s - begun_s < minutes * 60:
            out = f"s3://{bucket}/out-{rounds}"
            runs = round_of([*base, "--set", f"output.uri={out}"], server.environment(storm.port), faults, log)
            hold(out, said)
            assert faults.thread.is_alive(), "nothing more went wrong"
            failed = {row["uri"].rsplit("/", 1)[-1] for row in rows(out, "errors")}
            assert failed >= POISON, f"only {failed} were found out"
            rounds, annotated = rounds + 1, annotated + len(said)
            log.say(f"round {rounds} held: {len(said)} rows, {runs} runs, {log.faults.total()} faults so far")
    blown = sum(log.faults[kind] for kind, _ in KINDS) + log.faults["outage"]
    assert storm.faults or not blown, "storms were told, and no request was struck"
    thirds = memory.thirds(begun_s, log.now_s)
    flat = all(part[-1] <= GROWTH * part[0] for part in thirds.values())
    return {"minutes": round((log.now_s - begun_s) / 60, 1), "seed": seed, "rounds": rounds, "annotated": annotated,
            "faults": dict(log.faults), "struck": storm.faults, "rss_mb_by_third": thirds, "flat": flat}  # fmt: skip


def without_faults(folder: Path, job: Path, log: Log) -> Said:
    out = str(folder / "clean")
    with running([MLB_BATCH, "run", str(job), "--set", f"output.uri={out}"], {}) as process:
        _, err = process.communicate(timeout=1200)
    assert process.returncode == 0, err[-3000:]
    log.say("the run without faults has ended")
    return {key: text for key, text in texts(out).items() if key[0] not in POISON}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clips", type=int, default=400)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mlb-soak-") as folder:
        try:
            done = soak(given.minutes, given.seed, given.clips, Path(folder), Log())
        finally:
            conftest.pytest_unconfigure()
    print(json.dumps(done), flush=True)
    return 0 if done["flat"] else 1


if __name__ == "__main__":
    sys.exit(main())
