"""Processes, and those below another one, as Linux lists them; where there is no such list, none are seen."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PROCESSES = Path("/proc")
_LOOK_S = 0.1
_BEFORE_STATE = b") "  # a name may hold anything, this too; the last one is its end
_ENDED = (b"", b"Z", b"X")


@dataclass(frozen=True)
class Process:
    """A number is given again when its process has ended; the time of its start makes it one."""

    pid: int
    started: bytes  # in the kernel's ticks; empty where there was no such process

    @staticmethod
    def of(pid: int) -> Process:
        return Process(pid, _state(pid)[1])

    @property
    def is_there(self) -> bool:
        state, started = _state(self.pid)
        return state not in _ENDED and started == self.started

    def read(self, what: str) -> bytes:
        return _read(_PROCESSES / str(self.pid) / what)


def children(pid: int) -> list[Process]:
    lists = (_read(path) for path in _PROCESSES.glob(f"{pid}/task/*/children"))
    found = [int(child) for some in lists for child in some.split()]
    return [Process.of(child) for child in found]


def below(pid: int) -> list[Process]:
    found, waiting = [], children(pid)
    while waiting:
        found.append(one := waiting.pop())
        waiting += children(one.pid)
    return found


def end(processes: Sequence[Process], patience_s: float) -> None:
    """Kills those that have not ended by themselves in that time."""
    killed = _left(processes, patience_s)
    for one in killed:
        with suppress(ProcessLookupError):
            os.kill(one.pid, signal.SIGKILL)
    _left(killed, patience_s)


def _left(processes: Sequence[Process], patience_s: float) -> list[Process]:
    """Those that are still there when all have ended, or the time is over."""
    deadline = time.monotonic() + patience_s
    while (left := [one for one in processes if one.is_there]) and time.monotonic() < deadline:
        time.sleep(_LOOK_S)
    return left


def _state(pid: int) -> tuple[bytes, bytes]:
    """Of a process, one letter, and when it started; empty where it is gone."""
    fields = _read(_PROCESSES / str(pid) / "stat").rpartition(_BEFORE_STATE)[2].split()
    return (fields[0], fields[19]) if fields else (b"", b"")


def _read(path: Path) -> bytes:
    """Empty where the process has ended since, or where there is no such thing."""
    try:
        return path.read_bytes()
    except OSError:
        return b""
