"""Very many tiny videos, and few very long ones, through whole runs: memory, spilling, and whether the rate holds.

    python tests/overload.py FOLDER [TINY [LONG]]

TINY (50,000) videos of a few frames each, then LONG (20) videos of three hours at 25 frames a second in clips of a
minute. The model is the cheap part: one frame and one token a clip. Memory is each process's own, at its highest;
`store_mb` is the most of the object store that any process ever touched, and what was spilled is what Ray's raylet
says. The last line of stdout is one JSON object.
"""

from __future__ import annotations

import conftest  # noqa: F401  (Ray's folder and token)

# isort: split

import itertools
import json
import os
import re
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from commands import CAPTIONER, MLB_BATCH, RAYLET, READER, descendants, kill_all, start
from conftest import RAY_FOLDER
from small_jobs import PROMPTS, clips, job_file, table
from video_files import repeated, write_video

TINY, LONG = 50_000, 20
LONG_S, PART_S, CLIP_S, FPS = 3 * 3600, 60, 60, 25
CHEAP: dict[str, Any] = {"prompts": PROMPTS[:1], "frames": {"count": 1}, "generate": {"max_new_tokens": 1}}
ROLES = {
    "captioner": CAPTIONER,
    "reader": READER,
    "child": "mlb_batch.video.child",
    "raylet": RAYLET,
    "other": "",
}
LOOK_S = 2.0
TICKS = os.sysconf("SC_CLK_TCK")


def tiny_videos(folder: Path, count: int) -> None:
    """Names of four small files."""
    (folder / "videos").mkdir(parents=True)
    originals = clips(folder / "made", 4)
    for n in range(count):
        (folder / "videos" / f"v{n:06}.mp4").hardlink_to(originals[n % len(originals)])


def long_videos(folder: Path, count: int) -> None:
    (folder / "videos").mkdir(parents=True)
    part = write_video(folder / "part.mp4", PART_S * FPS, (180, 320), fps=FPS, gop=2 * FPS)
    whole = repeated(folder / "whole.mp4", part, LONG_S // PART_S)
    for n in range(count):
        (folder / "videos" / f"v{n:02}.mp4").hardlink_to(whole)


class Watch:
    """A run's processes, looked at from outside until it ends."""

    def __init__(self, driver: int) -> None:
        self.peak_mb: Counter[str] = Counter()
        self.cpu_s: dict[tuple[str, int], float] = {}
        self.store_mb = 0
        self._driver, self._over = driver, threading.Event()
        self._thread = threading.Thread(target=self._look_on)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def cpu_by_role(self) -> dict[str, float]:
        """Seconds; what ran for less than one look is missing."""
        total: Counter[str] = Counter()
        for (role, _), seconds in self.cpu_s.items():
            total[role] += seconds
        return {role: round(seconds, 1) for role, seconds in total.most_common()}

    def _look_on(self) -> None:
        while not self._over.wait(LOOK_S):
            there = {self._driver: "", **descendants(self._driver)}
            for pid, line in there.items():
                role = "driver" if pid == self._driver else next(r for r, part in ROLES.items() if part in line)
                try:
                    self._look_at(pid, role)
                except (OSError, TypeError):
                    continue  # it has ended

    def _look_at(self, pid: int, role: str) -> None:
        status = Path(f"/proc/{pid}/status").read_text()
        own, shared = (int(re.search(rf"{name}:\s+(\d+)", status)[1]) >> 10 for name in ("RssAnon", "RssShmem"))  # type: ignore[index]
        self.peak_mb[role] = max(self.peak_mb[role], own)
        self.store_mb = max(self.store_mb, shared)
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        self.cpu_s[role, pid] = (int(fields[11]) + int(fields[12])) / TICKS


def spilled(since_s: float) -> dict[str, int]:
    """What the raylets that were at work since then say of spilling."""
    found: Counter[str] = Counter()
    for path in RAY_FOLDER.rglob("debug_state.txt"):
        if path.stat().st_mtime >= since_s:
            for name, count in re.findall(
                r"- (num bytes currently spilled|cumulative spill requests): (\d+)", path.read_text()
            ):
                found[name] += int(count)
    assert found.keys() == {"num bytes currently spilled", "cumulative spill requests"}, "the raylet said nothing"
    return dict(found)


def thirds(output: Path) -> list[float]:
    """Rows a second in each third of the rows, by when they were committed."""
    times_s = sorted(row["created_at"].timestamp() for row in table(output))
    marks = [times_s[(len(times_s) - 1) * n // 3] for n in range(4)]
    return [round(len(times_s) / 3 / max(end - begin, 1e-9), 2) for begin, end in itertools.pairwise(marks)]


def overloaded(folder: Path, **job: Any) -> dict[str, Any]:
    """A whole run over folder/videos, and what it took."""
    begun_s = time.time()
    process = start(MLB_BATCH, "run", str(job_file(folder, **CHEAP, **job)))
    try:
        with Watch(process.pid) as watch:
            out, err = process.communicate()
    finally:
        kill_all(process)
    assert process.returncode == 0, err[-2000:]
    summary = json.loads(out.splitlines()[-1])
    told = {
        name: summary[name] for name in ("expected", "annotated", "errors", "wall_s", "read_s", "model_s", "write_s")
    }
    return {**told, "rows_per_s": thirds(folder / "out"), "peak_mb": dict(watch.peak_mb), "store_mb": watch.store_mb,
            "cpu_s": watch.cpu_by_role(), **spilled(begun_s)}  # fmt: skip


def main(folder: Path, tiny: int, long: int) -> None:
    told = {}
    if tiny:
        tiny_videos(folder / "tiny", tiny)
        told["tiny"] = overloaded(folder / "tiny")
        print(json.dumps(told), flush=True)
    if long:
        long_videos(folder / "long", long)
        told["long"] = overloaded(folder / "long", clips={"every_s": CLIP_S})
    print(json.dumps(told))


if __name__ == "__main__":
    given = [int(number) for number in sys.argv[2:]]
    main(Path(sys.argv[1]).absolute(), *given, *(TINY, LONG)[len(given) :])
