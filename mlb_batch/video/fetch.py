"""A uri -> a file to read from: local files as they are, others as far as they are wanted.

The only place where videos meet storage, and where storage's errors become error classes (refusals.py). The child that
reads gets a descriptor and nothing else; what it wants of a remote file it asks for (sandbox.py), `bring` brings it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from mlb_batch.errors import RowError
from mlb_batch.storage import local_path
from mlb_batch.stored_file import version_by
from mlb_batch.video.clock import Clock
from mlb_batch.video.objects import located, look_up
from mlb_batch.video.parts import Range
from mlb_batch.video.refusals import asked
from mlb_batch.video.remote import Remote
from mlb_batch.video.values import Limits

WHOLE_BYTES = 2 << 20  # up to so many, one request for all of it is cheaper than several for parts


@dataclass(frozen=True)
class Fetched:
    fd: int
    key: str  # of this copy, with what has been brought of it: what was found out of one holds for the same one only
    size: int
    version: str
    bring: Callable[[Sequence[Range]], None] | None  # None: everything is there
    bytes_fetched: Callable[[], int]


def version_of(uri: str, limits: Limits | None = None, clock: Clock | None = None) -> str:
    """What changes when the file's content does: an etag, or size and time of change. Raises RowError."""
    path, patience_s = local_path(uri), (limits or Limits()).patience_s
    if path is not None:
        return _local_version(asked(uri, path.stat, patience_s))
    fs, name = located(uri)
    return version_by(asked(uri, lambda: look_up(fs, name), patience_s, clock, little=True))


class Fetcher:
    """Opens one file at a time. Of a file in storage, what is here stays until another one is asked for: the clips of a
    long video share its index, or all of it where it has none.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._last: Remote | None = None

    @contextmanager
    def fetched(self, uri: str, clock: Clock, version: str | None = None) -> Iterator[Fetched]:
        """The file's content under a descriptor. With `version`, the file must still be that one. Raises RowError."""
        path = local_path(uri)
        with _local(uri, path, self._limits) if path is not None else self._remote(uri, clock, version) as file:
            if version is not None and file.version != version:
                raise RowError("changed_during_read", f"the file is {file.version} by now, it was {version}")
            if file.size == 0:
                raise RowError("empty", "the file has 0 bytes")
            if file.bring is not None and file.size <= WHOLE_BYTES:
                file.bring([(0, file.size)])
                file = replace(file, bring=None)  # all of it is there: its index need not be taken apart
            yield file

    def close(self) -> None:
        if self._last is not None:
            self._last.close()
            self._last = None

    def _now(self, uri: str, clock: Clock) -> str:
        return version_of(uri, self._limits, clock)

    @contextmanager
    def _remote(self, uri: str, clock: Clock, version: str | None) -> Iterator[Fetched]:
        last = self._last
        if last is not None and last.uri == uri and last.version == (version or self._now(uri, clock)):
            last.begin(clock)
        else:
            self.close()
            last = Remote(uri, self._limits, clock)
        self._last = last
        with ExitStack() as undo:
            undo.callback(self.close)
            yield Fetched(last.fd, last.key, last.size, last.version, last.bring, lambda: last.bytes_fetched)
            last.check_unchanged()
            undo.pop_all()  # all went well: it is kept for the next clip of the same video


@contextmanager
def _local(uri: str, path: Path, limits: Limits) -> Iterator[Fetched]:
    with asked(uri, lambda: _no_pipe(path).open("rb", buffering=0), limits.patience_s) as file:
        before = os.fstat(file.fileno())
        key = f"{uri} {_local_version(before)}"
        yield Fetched(file.fileno(), key, before.st_size, _local_version(before), None, lambda: before.st_size)
        if _local_version(os.fstat(file.fileno())) != _local_version(before):
            raise RowError("changed_during_read", "the file was written to while it was read")


def _no_pipe(path: Path) -> Path:
    """To open a named pipe is to wait for who writes into it; no clock ends that."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise RowError("not_video", "a pipe, a socket or a device stands there")
    return path


def _local_version(stat: os.stat_result) -> str:
    return f"{stat.st_mtime_ns}-{stat.st_size}"
