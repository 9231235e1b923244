"""Storage's errors, as one video's error class, or as the job's end where no video is to blame.

What may pass is tried again with jitter. Time that a video loses to a storage that does not answer is not the video's:
its clock stands still meanwhile, for as long as patience lasts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from mlb_batch.errors import RowError
from mlb_batch.storage import patience_for, scheme_of
from mlb_batch.storage_errors import (
    causes,
    error_kind,
    first_line,
    foreign_errors,
    outage,
    patiently,
    refusal,
    refuses_all,
    root_line,
    soon,
    status_of,
)
from mlb_batch.video.clock import Clock

_T = TypeVar("_T")


class WrongLength(OSError):
    """An answer that broke off, or goes on behind its end."""

    status = 200  # it is there, if not as it should be


def asked(uri: str, call: Callable[[], _T], patience_s: float, clock: Clock | None = None, little: bool = False) -> _T:
    """What storage answers. Raises RowError, and JobError where it would answer no video of this job. `little`: it is
    asked for so little that a bucket's service answers at once.
    """
    clock, on_web = clock or Clock(0), scheme_of(uri) in ("http", "https")
    call = soon(call) if little and not on_web else call

    def one_try() -> _T:
        begun = time.monotonic()
        try:
            answer = call()
        except foreign_errors():
            clock.stand(begun)
            raise
        clock.go_on()
        return answer

    patience_s = patience_for(uri, patience_s)
    try:
        return patiently(one_try, patience_s, _may_pass)
    except foreign_errors() as error:
        raise _error(uri, error, patience_s) from error


def refused(error: BaseException) -> bool:
    """The server's word is no, and it is not about haste, or about something that isn't there."""
    status = status_of(error)
    return status is not None and 400 <= status < 500 and status not in (404, 408, 409, 410, 412, 425, 429)


def _may_pass(error: BaseException) -> bool:
    return row_error(error).error_class == "storage" and not refuses_all(error) and not refused(error)


def _error(uri: str, error: BaseException, patience_s: float) -> Exception:
    if refuses_all(error):
        return refusal(uri, error)
    final = row_error(error)
    # On the web one host of many may be gone; a bucket's whole service may not.
    unreachable = final.error_class == "storage" and status_of(error) is None
    if unreachable and scheme_of(uri) not in ("http", "https", "file", "local"):
        return outage(uri, error, patience_s)
    return final


def row_error(error: BaseException) -> RowError:
    status = status_of(error)
    if isinstance(error, IsADirectoryError | NotADirectoryError):
        return RowError("not_found", first_line(error))
    if any(type(one).__name__ == "FileExpired" for one in causes(error)) or status == 412:  # s3fs reads with If-Match
        return RowError("changed_during_read", "the object was overwritten while it was read")
    if error_kind(error) == "refused":
        return RowError("forbidden", root_line(error))
    if error_kind(error) == "missing":
        return RowError("not_found", "no such file")
    return RowError("storage", root_line(error))
