"""Pixels on their way from the child to its supervisor, in memory that both see.

Fresh memory costs a fault for each of its pages, which is a good part of what a short video costs. So both sides keep
the last pieces that were handed over, by the same rule, and with each job the supervisor says which of them nobody
looks at any more: into one of those the next video's pixels go.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar
from weakref import ref

import numpy as np

from mlb_batch.errors import RowError
from mlb_batch.video.values import Frames, Pixels

KEPT = 2  # one is looked at while the next is filled
KEPT_BYTES = 64 << 20  # a larger one serves one video only

TIME_BYTES = 8


_Piece = TypeVar("_Piece")


def _keep(kept: dict[int, _Piece], number: int, piece: _Piece, size: int) -> None:
    """The last of them, in the order in which they were handed over. Both sides come to the same."""
    kept.pop(number, None)
    if size <= KEPT_BYTES:
        kept[number] = piece
    while len(kept) > KEPT:
        del kept[next(iter(kept))]


@dataclass(frozen=True)
class _Lent:
    fd: int
    memory: mmap.mmap

    def __del__(self) -> None:
        os.close(self.fd)


class Lender:
    """The child's side: the pixels of all frames, then their times as float64."""

    def __init__(self) -> None:
        self._kept: dict[int, _Lent] = {}
        self._numbers = count()
        self._free: Sequence[int] = ()
        self._filled: tuple[int, _Lent] | None = None

    def begin(self, free: Sequence[int]) -> None:
        """A new video. `free`: the pieces that may be written to."""
        self._free = free

    def end(self) -> None:
        self._filled = None

    def allocate(self, shape: tuple[int, ...]) -> Pixels:
        size = math.prod(shape)
        needed = size + TIME_BYTES * shape[0]
        fitting = [number for number in self._free if number in self._kept and len(self._kept[number].memory) >= needed]
        number = fitting[0] if fitting else next(self._numbers)
        lent = self._kept[number] if fitting else _fresh(needed)
        self._filled = number, lent
        return np.frombuffer(lent.memory, np.uint8, size).reshape(shape)

    def hand_over(self, frames: Frames) -> tuple[int, list[int]]:
        """The piece's number, and where it is a new one, what the supervisor gets it by; good until the end."""
        assert self._filled is not None
        number, lent = self._filled
        start = frames.pixels_FHWC.size
        lent.memory[start : start + TIME_BYTES * len(frames.times_s)] = np.array(frames.times_s, np.float64).tobytes()
        is_new = number not in self._kept
        _keep(self._kept, number, lent, len(lent.memory))
        return number, [lent.fd] if is_new else []


def _fresh(size: int) -> _Lent:
    fd = os.memfd_create("frames", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        return _Lent(fd, mmap.mmap(fd, size))
    except OSError as error:
        os.close(fd)
        raise MemoryError(f"{size:,} bytes of shared memory") from error


class _Borrowed:
    """A piece as the supervisor has it: mapped anew for each video, and free when that mapping is gone."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        # From here on the child cannot cut the memory short under our hands.
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        self.size = os.fstat(fd).st_size
        self._mapping: Callable[[], mmap.mmap | None] = lambda: None

    @property
    def is_free(self) -> bool:
        return self._mapping() is None

    def mapping(self) -> mmap.mmap:
        memory = mmap.mmap(self.fd, self.size)
        self._mapping = ref(memory)
        return memory

    def __del__(self) -> None:
        os.close(self.fd)


class Borrower:
    """The supervisor's side, of one child."""

    def __init__(self) -> None:
        self._kept: dict[int, _Borrowed] = {}
        self._last: _Borrowed | None = None

    def free(self) -> list[int]:
        return [number for number, piece in self._kept.items() if piece.is_free]

    def receive(self, number: int, fds: Sequence[int]) -> None:
        self._last = _Borrowed(fds[0]) if fds else self._kept.get(number)
        if self._last is not None:
            _keep(self._kept, number, self._last, self._last.size)

    def frames(self, answer: dict[str, Any]) -> Frames:
        """What was received last, as the child describes it; nothing is copied."""
        shape = tuple(int(n) for n in answer["shape"])
        size, frames = math.prod(shape), shape[0]
        piece, self._last = self._last, None
        if piece is None or piece.size < size + TIME_BYTES * frames:
            raise RowError("decoder_crash", "the reading process handed over less than it said")
        memory = piece.mapping()
        return Frames(
            pixels_FHWC=np.frombuffer(memory, np.uint8, size).reshape(shape),
            times_s=tuple(np.frombuffer(memory, np.float64, frames, size).tolist()),
            wanted=int(answer["wanted"]),
            duration_s=float(answer["duration_s"]),
            partial=bool(answer["partial"]),
            bytes_read=int(answer["bytes_read"]),
        )
