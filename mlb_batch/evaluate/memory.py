"""What captioning processes took at most, as Linux counts it; only where they run under this process.

A look now and then is enough: the system itself keeps each process's peak, and it only has to be read before the
process ends. On a GPU this is the host's memory, not the card's.
"""

from __future__ import annotations

import os
import re
import threading
from typing import Self

from mlb_batch.processes import Process, below

LOOK_S = 2.0  # each look walks all processes below this one


class CaptionersPeak:
    """While it is entered; `mb` is the largest peak of one captioner, 0 where none was seen."""

    def __init__(self) -> None:
        self.mb = 0.0
        self._ended = threading.Event()
        self._looking = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._looking.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._looking.join()

    def _look(self) -> None:
        while not self._ended.wait(LOOK_S):
            self.mb = max([self.mb, *map(_peak_mb, _captioners())])


def _captioners() -> list[Process]:
    """Processes below this one that Ray calls after the captioning step."""
    return [one for one in below(os.getpid()) if b"Caption" in one.read("cmdline")]


def _peak_mb(captioner: Process) -> float:
    found = re.search(rb"VmHWM:\s+(\d+) kB", captioner.read("status"))
    return int(found[1]) / 1024 if found else 0.0
