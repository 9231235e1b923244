"""A local Ray that does not come up ends its process: with a line that says what to do, and nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

from ray_nodes import until

SOON = "import mlb_batch.chain.cluster as cluster; cluster.START_S = 0.5; cluster.start_local(2)"


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
