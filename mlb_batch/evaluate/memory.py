"""What captioning processes took at most, as Linux counts it; only where they run under this process.

A look now and then is enough: the system itself keeps each process's peak, and it only has to be read before the
process ends. On a GPU this is the host's memory, not the card's.
"""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path
from typing import Self

LOOK_S = 2.0  # each look walks all processes below this one
_PROCESSES = Path("/proc")


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
            self.mb = max([self.mb, *map(_peak_mb, _captioners(os.getpid()))])


def _captioners(root: int) -> list[int]:
    """Processes below `root` that Ray calls after the captioning step."""
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        waiting += _children(pid)
        if b"Caption" in _read(_PROCESSES / str(pid) / "cmdline") and pid != root:
            found.append(pid)
    return found


def _children(pid: int) -> list[int]:
    return [
        int(child)
        for task in _PROCESSES.glob(f"{pid}/task/*/children")
        for child in _read(task).split()
    ]  # fmt: skip


def _peak_mb(pid: int) -> float:
    found = re.search(rb"VmHWM:\s+(\d+) kB", _read(_PROCESSES / str(pid) / "status"))
    return int(found[1]) / 1024 if found else 0.0


def _read(path: Path) -> bytes:
    """Empty where the process has ended since, or where there is no such thing."""
    try:
        return path.read_bytes()
    except OSError:
        return b""
