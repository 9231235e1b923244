"""What storage clients raise, in words of ours; and trying again, with full jitter, while patience lasts."""

from __future__ import annotations

import importlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import TypeVar

from mlb_batch.errors import JobError
from mlb_batch.threads import begun

PATIENCE_S, HURRIED_S = 120.0, 5.0
LONGEST_PAUSE_S = 10.0
FIRST_ANSWER_S = 1.0  # for little: S3 answers in tens of milliseconds, or has lost the request
_MOST_CHARS = 300  # of what an error says

_T = TypeVar("_T")


class _Patience(threading.local):
    most_s = PATIENCE_S


_patience = _Patience()


def own_patience_s() -> float:
    """How long this thread waits for small files."""
    return _patience.most_s


@contextmanager
def patience_of(most_s: float) -> Iterator[None]:
    """In this thread no longer than this."""
    before = _patience.most_s
    _patience.most_s = min(most_s, before)
    try:
        yield
    finally:
        _patience.most_s = before


def hurried() -> AbstractContextManager[None]:
    """For the way out of a job that has broken."""
    return patience_of(HURRIED_S)


def patiently(
    call: Callable[[], _T], patience_s: float = PATIENCE_S, may_pass: Callable[[BaseException], bool] | None = None
) -> _T:
    """The call's result; its foreign error where that is final, or where patience has ended."""
    may_pass = may_pass or (lambda error: error_kind(error) == "hiccup")
    deadline_s = time.monotonic() + patience_s
    for pause_s in _pauses():
        try:
            return call()
        except foreign_errors() as error:
            if not may_pass(error) or time.monotonic() + pause_s > deadline_s:
                raise
        time.sleep(pause_s)
    raise AssertionError("pauses never end")


def answered(uri: str, call: Callable[[], _T], patience_s: float) -> _T:
    """The call's result; FileExistsError or FileNotFoundError by the server's word, and JobError for all else."""
    try:
        return patiently(call, patience_s)
    except foreign_errors() as error:
        kind = error_kind(error)
        if kind == "exists":
            raise FileExistsError(str(error)) from error
        if kind == "missing":
            raise FileNotFoundError(str(error)) from error
        if kind == "refused":
            raise refusal(uri, error) from error
        raise outage(uri, error, patience_s) from error


def soon(call: Callable[[], _T]) -> Callable[[], _T]:
    """For `patiently`: a read of little that gets no answer is left to itself and done again, with twice the time."""
    limit_s = FIRST_ANSWER_S / 2

    def within() -> _T:
        nonlocal limit_s
        limit_s *= 2
        return begun(call).result(limit_s)

    return within


def _pauses() -> Iterator[float]:
    longest_s = 0.2
    while True:
        yield random.uniform(0, longest_s)
        longest_s = min(longest_s * 2, LONGEST_PAUSE_S)


def refusal(uri: str, error: BaseException) -> JobError:
    remedy = "check the credentials, and that the bucket exists"
    return JobError(f"{uri}: the storage refused: {_said(error)}; {remedy}, then run the same command to resume")


def outage(uri: str, error: BaseException, patience_s: float) -> JobError:
    waited = f"{uri}: the storage didn't answer well for {patience_s:.0f} s"
    return JobError(f"{waited}: {_said(error)}; run the same command again to resume")


def _said(error: BaseException) -> str:
    """On the web, clients call every failure a missing file, and name no more than that."""
    return root_line(error) if isinstance(error, FileNotFoundError) else first_line(error)


@cache
def foreign_errors() -> tuple[type[BaseException], ...]:
    """What storage clients raise besides OSError; only the clients that are installed are asked."""
    names = [
        ("botocore.exceptions", "BotoCoreError"),
        ("botocore.exceptions", "ClientError"),
        ("aiohttp", "ClientError"),
        ("gcsfs.retry", "HttpError"),
        ("azure.core.exceptions", "AzureError"),
    ]
    found: list[type[BaseException]] = [OSError, TimeoutError]
    for module, name in names:
        try:
            found.append(getattr(importlib.import_module(module), name))
        except ImportError:
            continue
    return tuple(found)


_EXISTS = frozenset({"PreconditionFailed", "412", "ConditionNotMet", "BlobAlreadyExists"})
# Nothing that this job asks for will be answered: no one object is to blame.
_ALL_REFUSED = frozenset({
    "NoSuchBucket", "InvalidBucketName", "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError",
    "ProfileNotFound", "TokenRetrievalError", "UnauthorizedSSOTokenError", "SSOTokenLoadError", "InvalidAccessKeyId",
    "SignatureDoesNotMatch", "ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired",
    "RequestTimeTooSkewed", "AllAccessDisabled", "AccountProblem", "NotSignedUp", "AuthenticationFailed",
    "InvalidAuthenticationInfo", "ContainerNotFound", "ClientAuthenticationError",
})  # fmt: skip


def error_kind(error: BaseException) -> str:
    """exists | missing | refused | hiccup; clients wrap the server's word, so the cause is looked at first."""
    words = set(_codes(error))
    if isinstance(error, FileExistsError) or words & _EXISTS:
        return "exists"
    if isinstance(error, PermissionError) or words & _ALL_REFUSED or "PermissionError" in words:
        return "refused"
    if status_of(error) in (401, 403):
        return "refused"
    return "missing" if isinstance(error, FileNotFoundError) and _is_missing(error) else "hiccup"


def _is_missing(error: FileNotFoundError) -> bool:
    """By the server's own word where there is one: on the web, clients call every failure a missing file."""
    status = status_of(error)
    if status is not None:
        return status in (404, 410)
    others = (one for one in causes(error) if not isinstance(one, FileNotFoundError))
    return not any(isinstance(one, foreign_errors()) for one in others)


def status_of(error: BaseException) -> int | None:
    """What a web server said, if one did."""
    return next(filter(None, map(_own_status, causes(error))), None)


def _own_status(error: BaseException) -> int | None:
    """As botocore, aiohttp, azure and httpx keep it."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    numbers = (getattr(one, name, None) for one in (error, response) for name in ("status", "status_code"))
    return next((number for number in numbers if isinstance(number, int)), None)


def refuses_all(error: BaseException) -> bool:
    """Bad or expired credentials, no such bucket: not this object is refused, but everything."""
    return not _ALL_REFUSED.isdisjoint(_codes(error))


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and what it was made from: clients translate, and not all of them say from what."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _codes(error: BaseException) -> Iterator[str]:
    for one in causes(error):
        yield type(one).__name__
        response = getattr(one, "response", None)
        if isinstance(response, dict):
            yield str(response.get("Error", {}).get("Code", ""))
        for attribute in ("code", "error_code"):
            yield str(vars(one).get(attribute, ""))


def first_line(error: BaseException) -> str:
    """What an error says, in one line; some servers send a code without a word."""
    lines = [line for line in str(error).splitlines() if line.strip() and line != "None"]
    return lines[0][:_MOST_CHARS] if lines else " ".join(filter(None, _codes(error)))


def one_line(error: BaseException) -> str:
    """All that an error says, in one line: some come to the point behind their first."""
    return " ".join(str(error).split())[:_MOST_CHARS] or type(error).__name__


def root_line(error: BaseException) -> str:
    """What the first error said, from which the others were made."""
    return first_line(list(causes(error))[-1])
