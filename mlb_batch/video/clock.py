"""What time a video has left: by its supervisor's clock, and by the deadline of the child that reads it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from threading import Lock

from mlb_batch.errors import RowError
from mlb_batch.video.container import Source
from mlb_batch.video.parts import Parts
from mlb_batch.video.values import Limits


def too_slow(seconds: float) -> RowError:
    return RowError("timeout", f"reading took longer than {seconds:g} s")


class Clock:
    """What is left of a video's time. Several threads may ask for parts of one video."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._lock = Lock()
        self._end = time.monotonic() + seconds
        self._stands_since: float | None = None
        self._went_on = -math.inf

    @property
    def left_s(self) -> float:
        with self._lock:
            return self._end - (time.monotonic() if self._stands_since is None else self._stands_since)

    @property
    def over(self) -> RowError:
        """What to raise once it is."""
        return too_slow(self._seconds)

    def stand(self, since: float) -> None:
        """Time that it stood still already is not given back once more."""
        with self._lock:
            if self._stands_since is None:
                self._stands_since = max(since, self._went_on)

    def go_on(self) -> None:
        with self._lock:
            if self._stands_since is not None:
                self._went_on = time.monotonic()
                self._end += self._went_on - self._stands_since
                self._stands_since = None

    def check(self) -> None:
        if self.left_s <= 0:
            raise self.over


class Deadline:
    """A point in time on the monotonic clock; `check` raises once it has passed."""

    def __init__(self, seconds: float, waited_s: Callable[[], float]) -> None:
        """`waited_s`: how much of the time since now was lost on waiting, which others keep the time of."""
        self._seconds = seconds
        self._waited_s = waited_s
        self._end = time.monotonic() + seconds - waited_s()

    def check(self) -> None:
        if time.monotonic() > self._end + self._waited_s():
            raise too_slow(self._seconds)


def deadline_of(limits: Limits, source: Source) -> Deadline:
    """From now on; the time in which parts are brought does not count, their fetcher keeps it."""
    return Deadline(limits.video_s, (lambda: source.waited_s) if isinstance(source, Parts) else (lambda: 0.0))
