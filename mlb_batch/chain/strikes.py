"""Rows that kill their whole actor: a row cannot be caught there, and Ray would feed it to the next actor for ever.

So every step says what it is about to touch, to an actor that outlives it. What was begun and never ended is a
suspect: it runs alone from then on, and after STRIKES deaths it becomes an error row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray

STRIKES = 3


class Record:
    """The actor: how often each key was begun without having ended."""

    def __init__(self) -> None:
        self._begun: dict[str, int] = {}

    def deaths(self, keys: Sequence[str]) -> list[int]:
        return [self._begun.get(key, 0) for key in keys]

    def begin(self, keys: Sequence[str]) -> None:
        self._begun.update({key: count + 1 for key, count in zip(keys, self.deaths(keys), strict=True)})

    def end(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._begun.pop(key, None)


class Strikes:
    """A step's side of the record."""

    def __init__(self) -> None:
        # Costs nothing and must outlive the workers. Should it die itself, it starts again with a clean record.
        self._record: Any = ray.remote(Record).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()

    def deaths(self, keys: Sequence[str]) -> list[int]:
        counts: list[int] = ray.get(self._record.deaths.remote(keys))
        return counts

    @contextmanager
    def watching(self, keys: Sequence[str]) -> Iterator[None]:
        ray.get(self._record.begin.remote(keys))  # must be on record before anything can happen
        try:
            yield
        finally:  # an exception is no death
            self._record.end.remote(keys)
