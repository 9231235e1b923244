"""What the killable child costs: every public video read in this process and through the Reader, turn by turn.

Compared is CPU time, of both processes together, which does not depend on what else runs on the machine; wall clock is
printed beside it.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from video_files import CORPUS, MODEL_SIZE, corpus

from mlb_batch.video import Limits, Reader, Sampling, Wanted, read_frames

ROUNDS, FRAMES, MOST_SHARE = 2, 32, 0.05


def cpu_s(reader: Reader) -> float:
    """Of this process and the child."""
    fields = Path(f"/proc/{reader.child_pid}/stat").read_text().rpartition(")")[2].split()
    return time.process_time() + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not corpus(), reason="the public files are not here")
def test_the_child_costs_less_than_a_twentieth_of_reading(capsys: pytest.CaptureFixture[str]) -> None:
    paths = [CORPUS / entry["file"] for entry in corpus() if entry["result"] == "ok"]
    cpu, wall = {"here": 0.0, "child": 0.0}, {"here": 0.0, "child": 0.0}
    with Reader(Sampling(FRAMES), MODEL_SIZE, Limits()) as reader:
        ways = {
            "here": lambda path: read_frames(path, Wanted(Sampling(FRAMES), MODEL_SIZE, Limits())),
            "child": lambda path: reader.read(str(path)),
        }
        for path in [paths[0], *paths * ROUNDS]:
            for name, way in ways.items():
                if reader.child_pid is None:  # the first of all only starts it
                    reader.read(str(path))
                before = cpu_s(reader), time.perf_counter()
                way(path)
                cpu[name] += cpu_s(reader) - before[0]
                wall[name] += time.perf_counter() - before[1]
    cost = {kind: told["child"] / told["here"] - 1 for kind, told in (("CPU", cpu), ("wall", wall))}
    with capsys.disabled():
        print(f"\n{len(paths)} videos: {cpu['here']:.1f} s of CPU in this process; through the child "
              f"{cost['CPU']:+.1%} CPU, {cost['wall']:+.1%} wall clock")  # fmt: skip
    assert cost["CPU"] < MOST_SHARE
