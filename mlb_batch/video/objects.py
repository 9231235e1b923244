"""A file in storage as its store gives it: what it is, its beginning, and any part of it.

S3 says what an object is along with its first bytes, in one answer, and gives parts of that version alone; of other
stores what a file is has to be asked first, and afterwards whether it still is that.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from fsspec.asyn import sync
from fsspec.spec import AbstractBufferedFile

from mlb_batch.errors import OutputError, RowError
from mlb_batch.storage import filesystem
from mlb_batch.storage_errors import foreign_errors, status_of
from mlb_batch.video.refusals import WrongLength, refused

LITTLE_BYTES = 512 << 10  # a request for no more is done again soon where no answer comes
FIRST_BYTES = LITTLE_BYTES  # many a clip is no larger, and a larger one's index as a rule begins in there
NO_SUCH_PART = 416  # what S3 says to who asks for the first bytes of an empty object


@dataclass(frozen=True)
class Stored:
    info: dict[str, Any]
    first: bytes  # its beginning, where that came along
    part: Callable[[int, int], bytes] | None  # None: it comes only as a whole, from its beginning
    one_version: bool  # whether all parts are of the version in `info`, or none comes


def located(uri: str) -> tuple[Any, str]:
    """The store, and the file's name in it. Raises RowError."""
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


def stored(fs: Any, name: str) -> Stored:
    return _object(fs, name) if "s3" in fs.protocol else _file(fs, name)


def _object(fs: Any, name: str) -> Stored:
    bucket, key, _ = fs.split_path(name)
    asked = {"Bucket": bucket, "Key": key}
    found = _first(fs, asked) if key else None
    if found is None:
        return Stored(look_up(fs, name), b"", None, one_version=True)  # a folder, empty, or not there
    answer, first = found
    asked["IfMatch"] = answer["ETag"]

    def part(start: int, end: int) -> bytes:
        return _get(fs, {**asked, "Range": _range(start, end)})[1]

    if "ContentRange" not in answer:
        raise RowError("storage", "the bucket's service sends whole objects where a range of one was asked for")
    size = int(answer["ContentRange"].rpartition("/")[2])
    if len(first) != min(size, FIRST_BYTES):
        raise WrongLength(f"{len(first):,} of the first {min(size, FIRST_BYTES):,} bytes came")
    return Stored({**answer, "size": size}, first, part, one_version=True)


def _first(fs: Any, asked: dict[str, str]) -> tuple[dict[str, Any], bytes] | None:
    try:
        return _get(fs, {**asked, "Range": _range(0, FIRST_BYTES)})
    except foreign_errors() as error:
        if not isinstance(error, FileNotFoundError) and status_of(error) != NO_SUCH_PART:
            raise
        return None


def _get(fs: Any, asked: dict[str, str]) -> tuple[dict[str, Any], bytes]:
    try:
        answer = fs.call_s3("get_object", **asked)
    except TypeError as error:  # s3fs trips over a server that says no without a word, as Ceph's gateway does
        word = error.__context__
        if not isinstance(word, OSError):
            raise
        raise word from word.__cause__
    with closing(answer["Body"]) as body:
        return answer, sync(fs.loop, body.read)


def _range(start: int, end: int) -> str:
    return f"bytes={start}-{end - 1}"


def _file(fs: Any, name: str) -> Stored:
    info = look_up(fs, name)
    if not info.get("size") or info.get("partial") is False:  # a web server that gives all or nothing
        return Stored(info, b"", None, one_version=False)
    try:
        file = fs.open(name, "rb", cache_type="none")
    except FileNotFoundError:
        raise
    except foreign_errors():
        file = None  # what is wrong, asking for it will say
    part = file._fetch_range if isinstance(file, AbstractBufferedFile) else None
    return Stored(info, b"", part, one_version=False)
