"""Readers for several threads: each has one to itself for as long as it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import Generic, Self, TypeVar

from mlb_batch.video.sandbox import Prober

_Reader = TypeVar("_Reader", bound=Prober)


class Several(Generic[_Reader]):
    def __init__(self, make: Callable[[], _Reader], count: int) -> None:
        self._idle: SimpleQueue[_Reader] = SimpleQueue()
        self._closed = False
        for _ in range(count):
            self._idle.put(make())

    @contextmanager
    def one(self) -> Iterator[_Reader]:
        reader = self._idle.get()
        try:
            yield reader
        finally:
            self._idle.put(reader)
            if self._closed:
                self._close_idle()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """One that a thread has which nobody waits for any more is closed by that thread."""
        self._closed = True
        self._close_idle()

    def _close_idle(self) -> None:
        with suppress(Empty):
            while True:
                self._idle.get_nowait().close()
