"""A video in storage, of which the parts that were asked for lie in a nameless local file, at their places.

Every part is asked of the same version (If-Match where the store knows it, else checked afterwards), has the length
that was asked for, and comes within the video's time. Nothing is left behind whatever happens, since the copy has no
name.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import count
from typing import Any, BinaryIO, cast

from fsspec.spec import AbstractBufferedFile

from mlb_batch.errors import OutputError, RowError
from mlb_batch.storage import filesystem, scheme_of
from mlb_batch.storage_errors import first_line, foreign_errors
from mlb_batch.video.parts import Range, merged
from mlb_batch.video.refusals import Clock, Short, asked, refused
from mlb_batch.video.values import Limits

IN_MEMORY_BYTES = 64 << 20
PIECE_BYTES = 8 << 20  # of one request; several run side by side
LITTLE_BYTES = 512 << 10  # a request for no more is done again soon where no answer comes
AT_ONCE = 8
LOOK_S = 0.2
_SERIAL = count()


class Remote:
    def __init__(self, uri: str, limits: Limits, clock: Clock) -> None:
        """Asks what it is, and fetches nothing."""
        self.uri, self._limits, self._clock = uri, limits, clock
        self._fs, self._name = remote(uri)
        self._file, info = self._asked(lambda: _opened(self._fs, self._name), little=True)
        if info.get("type") == "directory":
            raise RowError("not_found", "it is a folder")
        self.version = remote_version(info)
        self.size = self._within_limits(int(info.get("size") or 0))
        self.bytes_fetched = 0
        self.key = f"{uri} {self.version} {next(_SERIAL)}"
        self._here: list[Range] = []
        self._copy = _nameless(self.size)
        if info.get("size") is None:
            self._stream()

    @property
    def fd(self) -> int:
        return self._copy.fileno()

    @property
    def is_small(self) -> bool:
        """Little enough is here to be kept for a while."""
        return sum(end - start for start, end in self._here) <= IN_MEMORY_BYTES

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
        if not isinstance(self._file, AbstractBufferedFile):
            self._stream()
            return
        pool = ThreadPoolExecutor(min(AT_ONCE, len(pieces)))
        try:
            self._gather({pool.submit(self._fetch, piece): piece for piece in pieces})
        except ValueError:  # fsspec's word for a web server that gives a file only from its beginning
            self._stream()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def check_unchanged(self) -> None:
        """For stores that can't be asked for one version only."""
        if scheme_of(self.uri) in ("s3", "s3a"):
            return
        now = remote_version(self._asked(lambda: self._fs.info(self._name), little=True))
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
        start, end = piece

        def fetch() -> bytes:
            try:
                data = bytes(self._file._fetch_range(start, end))
            except TypeError as error:  # s3fs trips over a server that says no without a word, as Ceph's gateway does
                word = error.__context__
                if not isinstance(word, OSError):
                    raise
                raise word from word.__cause__
            self.bytes_fetched += len(data)
            if len(data) != end - start:
                raise Short(f"{len(data):,} of {end - start:,} bytes came")
            return data

        return self._asked(fetch, little=end - start <= LITTLE_BYTES)

    def _stream(self) -> None:
        """All of it from the beginning, where parts can't be had, or the size isn't known before."""
        self._asked(self._copy_all)
        self._here = [(0, self.size)]

    def _copy_all(self) -> None:
        there = 0
        options = {"block_size": 0} if scheme_of(self.uri) in ("http", "https") else {}
        with self._fs.open(self._name, "rb", **options) as file:
            while chunk := file.read(PIECE_BYTES):
                self._keep(chunk, there)
                there += len(chunk)
                self.bytes_fetched += len(chunk)
                self._within_limits(there)
                self._clock.check()
        if self.size and there != self.size:
            raise Short(f"{there:,} of {self.size:,} bytes came")
        self.size = there

    def _keep(self, data: bytes, start: int) -> None:
        try:
            os.pwrite(self.fd, data, start)
        except OSError as error:
            raise _no_room(error) from error

    def _within_limits(self, size: int) -> int:
        most = self._limits.max_bytes
        if most is not None and size > most:
            raise RowError("too_large", f"the file has {size:,} bytes, the limit is {most:,}")
        return size

    def _asked(self, call: Callable[[], Any], little: bool = False) -> Any:
        return asked(self.uri, call, self._limits.patience_s, self._clock, little)


def remote(uri: str) -> tuple[Any, str]:
    try:
        return filesystem(uri)
    except OutputError as error:
        raise RowError("not_found", str(error)) from error


def look_up(fs: Any, name: str) -> dict[str, Any]:
    """The store's entry of a file, or its refusal with the reason: that of a HEAD has none."""
    try:
        return dict(fs.info(name))
    except foreign_errors() as error:
        if "s3" in fs.protocol and refused(error):
            fs.cat_file(name, start=0, end=1)
        raise


def _opened(fs: Any, name: str) -> tuple[Any, dict[str, Any]]:
    """What gives parts of the file, None where nothing does; and the store's entry of it."""
    info = None if "s3" in fs.protocol else look_up(fs, name)
    if info is not None and (not info.get("size") or info.get("partial") is False):
        return None, info  # a web server that gives all or nothing, and begins to send all when it is opened
    try:
        file = fs.open(name, "rb", cache_type="none")  # s3fs looks the object up, and reads no other version of it
    except FileNotFoundError:
        raise
    except foreign_errors():
        file = None  # what is wrong, asking for it will say
    if info is None:
        info = file.details if isinstance(file, AbstractBufferedFile) else look_up(fs, name)
    return file, info


def remote_version(info: dict[str, Any]) -> str:
    """Stores name the etag differently; one without it at least knows size and time."""
    for key in ("ETag", "etag", "md5Hash", "content_settings"):
        if info.get(key):
            return str(info[key]).strip('"')
    times = ("LastModified", "last_modified", "Last-Modified", "mtime", "updated", "created")
    changed = next((info[key] for key in times if key in info), "")
    return f"{changed}-{info.get('size')}"


def _nameless(size: int) -> BinaryIO:
    try:
        copy = _in_memory() if size <= IN_MEMORY_BYTES else _on_disk()
        copy.truncate(size)
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
