"""A uri -> an open file. The only place where videos meet storage, and where storage's errors become error classes.

`fetched` is what the sandbox reads from: a file descriptor, local files as they are, anything else copied whole into
memory (or, where it is large, into an unnamed file under TMPDIR). Nothing is left behind whatever happens, since what
is copied never has a name. `open_uri` reads by ranges, for whoever wants only the headers.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from mlb_batch.errors import OutputError, RowError
from mlb_batch.storage import error_kind, filesystem, first_line, foreign_errors, local_path
from mlb_batch.video.values import Limits

IN_MEMORY_BYTES = 64 << 20
CHUNK_BYTES = 8 << 20
TRIES = 4  # of one storage call: clients try again too, but not where an answer breaks off half way

_T = TypeVar("_T")


@dataclass(frozen=True)
class Fetched:
    fd: int
    size: int
    version: str


def open_uri(uri: str) -> BinaryIO:
    """Seekable; of a remote file only what is read is fetched. Raises RowError."""
    path = local_path(uri)
    if path is not None:
        return _typed(uri, lambda: path.open("rb"))
    fs, name = _remote(uri)
    return cast(BinaryIO, _typed(uri, lambda: fs.open(name, "rb")))


def version_of(uri: str) -> str:
    """What changes when the file's content does: an etag, or size and time of change. Raises RowError."""
    path = local_path(uri)
    if path is not None:
        return _local_version(_typed(uri, path.stat))
    fs, name = _remote(uri)
    return _remote_version(_typed(uri, lambda: fs.info(name)))


@contextmanager
def fetched(uri: str, limits: Limits, version: str | None = None) -> Iterator[Fetched]:
    """The file's content under a descriptor. With `version`, the file must still be that one. Raises RowError."""
    path = local_path(uri)
    with _local(uri, path) if path is not None else _copied(uri, limits) as file:
        if version is not None and file.version != version:
            raise RowError("changed_during_read", f"the file is {file.version} by now, it was {version}")
        if file.size == 0:
            raise RowError("empty", "the file has 0 bytes")
        yield file


@contextmanager
def _local(uri: str, path: Path) -> Iterator[Fetched]:
    with _typed(uri, lambda: path.open("rb", buffering=0)) as file:
        before = os.fstat(file.fileno())
        yield Fetched(file.fileno(), before.st_size, _local_version(before))
        if _local_version(os.fstat(file.fileno())) != _local_version(before):
            raise RowError("changed_during_read", "the file was written to while it was read")


@contextmanager
def _copied(uri: str, limits: Limits) -> Iterator[Fetched]:
    fs, name = _remote(uri)
    end = time.monotonic() + limits.video_s
    info = _typed(uri, lambda: fs.info(name))
    if info.get("type") == "directory":
        raise RowError("not_found", "it is a folder")
    size = int(info["size"])
    if limits.max_bytes is not None and size > limits.max_bytes:
        raise RowError("too_large", f"the file has {size:,} bytes, the limit is {limits.max_bytes:,}")
    with _nameless(size) as copy:
        _typed(uri, lambda: _copy(fs, name, size, copy, end))
        yield Fetched(copy.fileno(), size, _remote_version(info))


def _nameless(size: int) -> BinaryIO:
    try:
        if size <= IN_MEMORY_BYTES:
            return os.fdopen(os.memfd_create("video", os.MFD_CLOEXEC), "w+b")
        return cast(BinaryIO, tempfile.TemporaryFile())
    except OSError as error:
        raise RowError("storage", f"no room for a copy of the video: {first_line(error)}") from error


def _copy(fs: Any, name: str, size: int, copy: BinaryIO, end: float) -> None:
    """From the beginning, so that it can be tried again."""
    copy.seek(0)
    copy.truncate()
    with fs.open(name, "rb", block_size=CHUNK_BYTES, cache_type="readahead") as remote:
        while chunk := remote.read(CHUNK_BYTES):
            copy.write(chunk)
            if time.monotonic() > end:
                raise RowError("timeout", f"{copy.tell():,} of {size:,} bytes had come when the time was up")
    copy.flush()
    if copy.tell() != size:
        raise OSError(f"{copy.tell():,} of {size:,} bytes came")


def _remote(uri: str) -> tuple[Any, str]:
    try:
        return filesystem(uri)
    except OutputError as error:
        raise RowError("not_found", str(error)) from error


def _typed(uri: str, call: Callable[[], _T]) -> _T:
    """Storage's errors as ours; what may be a hiccup is tried again."""
    for attempt in range(TRIES):
        try:
            return call()
        except foreign_errors() as error:
            final = _row_error(error)
            if final.error_class != "storage" or local_path(uri) is not None or attempt == TRIES - 1:
                raise final from error
        time.sleep(random.uniform(0, 0.25 * 2**attempt))
    raise AssertionError("the last try returns or raises")


def _row_error(error: BaseException) -> RowError:
    """By the server's own word where there is one: some clients call every failure a missing file."""
    causes = list(_causes(error))
    status = next(filter(None, map(_http_status, causes)), None)
    if isinstance(error, IsADirectoryError | NotADirectoryError):
        return RowError("not_found", first_line(error))
    if any(type(cause).__name__ == "FileExpired" for cause in causes) or status == 412:  # s3fs reads with If-Match
        return RowError("changed_during_read", "the object was overwritten while it was read")
    if status in (401, 403) or error_kind(error) == "refused":
        return RowError("forbidden", first_line(error))
    unanswered = status is None and isinstance(causes[-1], foreign_errors()) and len(causes) > 1
    if error_kind(error) == "missing" and status in (None, 404, 410) and not unanswered:
        return RowError("not_found", "no such file")
    return RowError("storage", first_line(causes[-1]))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _http_status(error: BaseException) -> int | None:
    """As aiohttp and botocore keep it."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    status = getattr(error, "status", None)
    return status if isinstance(status, int) else None


def _local_version(stat: os.stat_result) -> str:
    return f"{stat.st_mtime_ns}-{stat.st_size}"


def _remote_version(info: dict[str, Any]) -> str:
    """Stores name the etag differently; one without it at least knows size and time."""
    for key in ("ETag", "etag", "md5Hash", "content_settings"):
        if info.get(key):
            return str(info[key]).strip('"')
    changed = next(
        (info[key] for key in ("LastModified", "last_modified", "mtime", "updated", "created") if key in info), ""
    )
    return f"{changed}-{info.get('size')}"
