"""A run of the captioning step alone, in a process of its own, over clips of which one kills captioner and driver.

    python tests/deadly_clip.py OUTPUT NOTES

Prints what became of each clip; what captioners touched stands in NOTES, a line a batch.
"""

from __future__ import annotations

import conftest  # noqa: F401  (Ray's folder and token)

# isort: split

import ctypes
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.data import ActorPoolStrategy, DataContext

from mlb_batch.chain.arrivals import arriving
from mlb_batch.chain.cluster import data_context, start_local
from mlb_batch.chain.pools import MOST_A_LOOK
from mlb_batch.chain.strikes import lasting_strikes
from mlb_batch.errors import RowError
from mlb_batch.rows import Constants
from mlb_batch.source import Prompt, Video
from mlb_batch.stages import Caption
from mlb_batch.video import Frames
from mlb_batch.work import Ask, Counts, Read, Work, read_table

CLIPS, DEADLY, BATCH = 8, 2, 4
SAME = Constants("model", "none", "per_prompt")


def read(number: int) -> Read:
    """A clip whose first pixel says which one it is."""
    frames = Frames(np.full((2, 4, 4, 3), number, np.uint8), (0.0, 1.0), 2, 2.0, False, 100)
    video = Video(f"v{number}", f"/v{number}.mp4", None, None, (), {})
    ask = Ask(f"{number:032x}", Prompt("c", "caption", "Describe."), 1)
    return Read(Work(video, "", None, None, (ask,), Counts(1, 1)), frames)


class Killer:
    """A captioner that gives no answer but failures, so that no model is needed, and dies of one clip, or of all.

    `takes` are the processes that it takes along.
    """

    without_result = 0

    def __init__(self, notes: str, takes: Sequence[int] = (), of_all: bool = False, hangs: bool = False) -> None:
        self._notes, self._takes, self._of_all, self._hangs = Path(notes), takes, of_all, hangs

    def annotate(self, clips: Sequence[Any]) -> list[list[Any]]:
        return [[RowError("bad_prompt", str(number))] for number in self._touched(clips)]

    def measure(self, clip: Any) -> Any:
        return self._touched([clip])[0], 0.5

    def _touched(self, clips: Sequence[Any]) -> list[int]:
        numbers = [int(clip.pixels_FHWC[0, 0, 0, 0]) for clip in clips]
        with self._notes.open("a") as notes:
            notes.write(f"{numbers}\n")
        if self._hangs and DEADLY in numbers:
            ctypes.PyDLL(None).pause()  # and never lets go of the interpreter
        if self._of_all or DEADLY in numbers:
            for pid in (*self._takes, os.getpid()):
                os.kill(pid, signal.SIGKILL)
        return numbers


def main(output: str, notes: str) -> None:
    start_local(num_cpus=2)
    driver = os.getpid()
    watched = lasting_strikes(output, "f" * 16, f"run-{driver}", False, 3600.0)
    with DataContext.current(data_context(MOST_A_LOOK)), watched as strikes:
        load = lambda: Killer(notes, takes=[driver])  # noqa: E731  (travels by value)
        reads = ray.data.from_arrow([read_table(read(number)) for number in range(CLIPS)])
        done = reads.map_batches(
            Caption, fn_constructor_args=(load, SAME, strikes, 1), batch_format="pyarrow", batch_size=BATCH,
            num_cpus=1, compute=ActorPoolStrategy(size=1),
        )  # fmt: skip
        rows = []
        with arriving(done) as arrivals:
            while (arrived := arrivals.take(1.0)) is not None:
                rows += [row for outcome in arrived for row in outcome.errors]
    print(json.dumps({row["video_id"]: [row["error_class"], row["retryable"]] for row in rows}))


if __name__ == "__main__":
    main(*sys.argv[1:])
