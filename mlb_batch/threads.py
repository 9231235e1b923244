"""Calls side by side, on threads that whoever is stopped, or has waited long enough, leaves behind.

For Python's own pool a process waits where the pool's block ends, and once more at its own end: told to stop while a
storage is silent, it would be deaf for as long as patience lasts, and for ever to a server that trickles.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

# What is under way has so long to end where an exception goes through: it takes no longer but where nothing answers,
# and a thread that Python's end meets in the middle of a library's own code can take the exit code along.
LAST_CALLS_S = 1.0

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Call = tuple[Future[Any], Callable[[], Any]]


def begun(call: Callable[[], _T]) -> Future[_T]:
    """On a thread of its own."""
    answer: Future[_T] = Future()
    threading.Thread(target=_hand_over, args=(answer, call), daemon=True).start()
    return answer


class Threads(Executor):
    def __init__(self, most: int) -> None:
        self._most = most
        self._threads: list[threading.Thread] = []
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()

    def submit(self, call: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        answer: Future[_T] = Future()
        self._calls.put((answer, partial(call, *args, **kwargs)))
        if len(self._threads) < self._most:
            self._threads.append(threading.Thread(target=_work, args=(self._calls,), daemon=True))
            self._threads[-1].start()
        return answer

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        if cancel_futures:
            self._cancel()
        for _ in self._threads:
            self._calls.put(None)
        if wait:
            for one in self._threads:
                one.join()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.shutdown(wait=error is None, cancel_futures=error is not None)
        until_s = time.monotonic() + LAST_CALLS_S
        for one in self._threads:
            one.join(max(0.0, until_s - time.monotonic()))

    def _cancel(self) -> None:
        with suppress(Empty):
            while waiting := self._calls.get_nowait():
                waiting[0].cancel()


def _work(calls: SimpleQueue[_Call | None]) -> None:
    while waiting := calls.get():
        _hand_over(*waiting)
        del waiting  # or it would keep the answer, which may be a whole file, until the next call


def _hand_over(answer: Future[_T], call: Callable[[], _T]) -> None:
    if not answer.set_running_or_notify_cancel():
        return
    try:
        answer.set_result(call())
    except BaseException as error:
        answer.set_exception(error)  # it is raised where the answer is waited for
    finally:
        del answer, call  # an error knows this frame, and would keep itself
