"""A file of which only parts are here, as the child sees it: what is read of it and isn't here is asked for first.

Whoever reads it by this object gets the file; whoever reads its path gets zeros where nothing was brought yet.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

Range = tuple[int, int]  # first byte, and the one after the last

FIRST_BYTES = 128 << 10  # of a read at a new place; a read that goes on from the last one doubles it
MOST_BYTES = 4 << 20
MOST_RANGES = 500  # of one message


class Parts(io.RawIOBase):
    def __init__(self, path: Path, size: int, ask: Callable[[Sequence[Range]], None]) -> None:
        super().__init__()
        self.path, self.size = path, size
        self.waited_s = 0.0
        self._ask = ask
        self._file = path.open("rb", buffering=0)
        self._here: list[Range] = []
        self._at, self._ahead = 0, FIRST_BYTES

    def bring(self, ranges: Sequence[Range]) -> None:
        begun_s = time.monotonic()
        for first in range(0, len(ranges), MOST_RANGES):
            self._ask(ranges[first : first + MOST_RANGES])
        self._here = merged([*self._here, *ranges], 0)
        self.waited_s += time.monotonic() - begun_s

    def bring_all(self) -> Path:
        """Where all of it lies then."""
        self.bring([(0, self.size)])
        return self.path

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def read(self, length: int = -1) -> bytes:
        end = self.size if length < 0 else min(self._at + length, self.size)
        if self._at >= end:
            return b""
        start = self._first_missing(self._at, end)
        if start < end:
            goes_on = any(last == start for _, last in self._here)
            self._ahead = min(2 * self._ahead, MOST_BYTES) if goes_on else FIRST_BYTES
            self.bring([(start, min(max(end, start + self._ahead), self.size))])
        data = os.pread(self._file.fileno(), end - self._at, self._at)
        self._at += len(data)
        return data

    def close(self) -> None:
        self._file.close()
        super().close()

    def _first_missing(self, start: int, end: int) -> int:
        for first, last in self._here:
            if first <= start < last:
                start = last
        return min(start, end)


@contextmanager
def nothing_of(path: Path) -> Iterator[Parts]:
    """A file of this machine as if nothing of it were here: whoever wants its index alone passes over no pictures."""
    with path.open("rb") as whole, os.fdopen(os.memfd_create("parts"), "wb") as here:
        size = os.fstat(whole.fileno()).st_size
        here.truncate(size)

        def bring(ranges: Sequence[Range]) -> None:
            for start, end in ranges:
                os.pwrite(here.fileno(), os.pread(whole.fileno(), end - start, start), start)

        with closing(Parts(Path(f"/proc/self/fd/{here.fileno()}"), size, bring)) as parts:
            yield parts


def merged(ranges: Sequence[Range], gap: int) -> list[Range]:
    """The ranges in order, those joined that lie no more than `gap` apart."""
    out: list[Range] = []
    for start, end in sorted(ranges):
        if out and start <= out[-1][1] + gap:
            out[-1] = (out[-1][0], max(end, out[-1][1]))
        else:
            out.append((start, end))
    return out
