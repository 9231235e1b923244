"""A video in storage, of which the parts that were asked for lie in a nameless local file, at their places.

Every part is of the same version, has the length that was asked for, and comes within the video's time. Nothing is left
behind whatever happens, since the copy has no name.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from itertools import count
from typing import Any, BinaryIO, cast

from mlb_batch.errors import RowError
from mlb_batch.storage import scheme_of
from mlb_batch.storage_errors import first_line
from mlb_batch.stored_file import version_by
from mlb_batch.threads import Threads
from mlb_batch.video.clock import Clock
from mlb_batch.video.objects import LITTLE_BYTES, Stored, located, stored
from mlb_batch.video.parts import Range, merged
from mlb_batch.video.refusals import WrongLength, asked
from mlb_batch.video.values import Limits

IN_MEMORY_BYTES = 64 << 20
PIECE_BYTES = 8 << 20  # of one request; several run side by side
AT_ONCE = 8
LOOK_S = 0.2
_SERIAL = count()


class Remote:
    def __init__(self, uri: str, limits: Limits, clock: Clock) -> None:
        """Asks what it is, and fetches no more than comes along with the answer."""
        self.uri, self._limits, self._clock = uri, limits, clock
        self._fs, self._name = located(uri)
        self._stored: Stored = self._asked(lambda: stored(self._fs, self._name), little=True)
        info, first = self._stored.info, self._stored.first
        if info.get("type") == "directory":
            raise RowError("not_found", "it is a folder")
        self.version = version_by(info)
        said = info.get("size")
        self.size = int(said or 0)
        self.bytes_fetched = len(first)
        self.key = f"{uri} {self.version} {next(_SERIAL)}"
        self._here: list[Range] = [(0, len(first))] if first else []
        self._copy = _nameless(said)
        self._keep(first, 0)
        if said is None:
            self._stream()

    @property
    def fd(self) -> int:
        return self._copy.fileno()

    def begin(self, clock: Clock) -> None:
        """For the next clip of the same file."""
        self._clock, self.bytes_fetched = clock, 0

    def bring(self, wanted: Sequence[Range]) -> None:
        """Raises RowError."""
        missing = [gap for one in wanted for gap in _missing(one, self._here)]
        pieces = [piece for gap in missing for piece in _pieces(gap)]
        if not pieces:
            return
        self._clock.check()
        if self._stored.part is None:
            self._stream()
            return
        pool = Threads(min(AT_ONCE, len(pieces)))
        try:
            self._gather({pool.submit(self._fetch, piece): piece for piece in pieces})
        except ValueError:  # fsspec's word for a web server that gives a file only from its beginning
            self._stream()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def check_unchanged(self) -> None:
        """For stores that can't be asked for one version only."""
        if self._stored.one_version:
            return
        now = version_by(self._asked(lambda: self._fs.info(self._name), little=True))
        if now != self.version:
            raise RowError("changed_during_read", f"the file is {now} by now, it was {self.version}")

    def close(self) -> None:
        self._copy.close()

    def _gather(self, running: dict[Future[bytes], Range]) -> None:
        while running:
            done, _ = wait(running, LOOK_S, FIRST_COMPLETED)
            for one in done:
                start, end = running.pop(one)
                self._keep(one.result(), start)
                self._here.append((start, end))
            if running:
                self._clock.check()

    def _fetch(self, piece: Range) -> bytes:
        (start, end), part = piece, self._stored.part
        assert part is not None

        def fetch() -> bytes:
            data = part(start, end)
            self.bytes_fetched += len(data)
            if len(data) != end - start:
                raise WrongLength(f"{len(data):,} of {end - start:,} bytes came")
            return data

        return self._asked(fetch, little=end - start <= LITTLE_BYTES)

    def _stream(self) -> None:
        """All of it from the beginning, where parts can't be had, or the size isn't known before."""
        self._asked(self._copy_all)
        self._here = [(0, self.size)]

    def _copy_all(self) -> None:
        there, most = 0, self.size or math.inf
        options = {"block_size": 0} if scheme_of(self.uri) in ("http", "https") else {}
        with self._fs.open(self._name, "rb", **options) as file:
            while chunk := file.read(PIECE_BYTES):
                self.bytes_fetched += len(chunk)
                self._clock.check()
                if there + len(chunk) > most:
                    raise WrongLength(f"more than {most:,} bytes came")
                self._keep(chunk, there)
                there += len(chunk)
        if self.size and there != self.size:
            raise WrongLength(f"{there:,} of {self.size:,} bytes came")
        self.size = there

    def _keep(self, data: bytes, start: int) -> None:
        try:
            os.pwrite(self.fd, data, start)
        except OSError as error:
            raise _no_room(error) from error

    def _asked(self, call: Callable[[], Any], little: bool = False) -> Any:
        return asked(self.uri, call, self._limits.patience_s, self._clock, little)


def _nameless(size: int | None) -> BinaryIO:
    try:
        copy = _on_disk() if size is None or size > IN_MEMORY_BYTES else _in_memory()
        copy.truncate(size or 0)
        return copy
    except OSError as error:
        raise _no_room(error) from error


def _in_memory() -> BinaryIO:
    return os.fdopen(os.memfd_create("video", os.MFD_CLOEXEC), "w+b")


def _on_disk() -> BinaryIO:
    return cast(BinaryIO, tempfile.TemporaryFile())


def _no_room(error: OSError) -> RowError:
    return RowError("storage", f"no room for a copy of the video: {first_line(error)}")


def _missing(wanted: Range, here: Sequence[Range]) -> Iterator[Range]:
    """What of `wanted` isn't here."""
    start, end = wanted
    for first, last in merged(here, 0):
        if last <= start or first >= end:
            continue
        if start < first:
            yield start, first
        start = last
    if start < end:
        yield start, end


def _pieces(gap: Range) -> Iterator[Range]:
    start, end = gap
    return ((at, min(at + PIECE_BYTES, end)) for at in range(start, end, PIECE_BYTES))
