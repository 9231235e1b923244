"""How far the source runs ahead of what comes out: only so many videos are under way at once.

Ray Data bounds by their bytes what waits between its steps. What weighs nothing there still costs the driver kilobytes
a block: a source that is let go would lay the whole input out in its memory, and so would readers of short clips.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import ray

from mlb_batch.chain.beside import beside_driver, release
from mlb_batch.work import Outcome

PARTING_S = 1.0
STEPS = 16  # the source asks, and the driver tells, so many times on the way to its limit


class Gate:
    """The actor."""

    def __init__(self) -> None:
        self._ended = 0
        self._moved = asyncio.Condition()

    async def tell(self, ended: int) -> None:
        async with self._moved:
            self._ended = max(self._ended, ended)
            self._moved.notify_all()

    async def room(self, begun: int, most: int) -> None:
        """Returns once fewer than `most` of those begun are under way."""
        async with self._moved:
            await self._moved.wait_for(lambda: begun - self._ended < most)


class Pace:
    """The source's side, which waits, and the driver's, which tells."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._step = most // STEPS
        self._ended = self._told = 0
        # Should it die, it starts again, and is told the whole number soon.
        self._gate: Any = beside_driver(Gate, max_restarts=-1, max_task_retries=-1).remote()

    def wait(self, begun: int) -> None:
        if begun % self._step == 0:
            ray.get(self._gate.room.remote(begun, self._most))

    def arrived(self, outcomes: Sequence[Outcome]) -> None:
        """A row's counts come once, with the first of its clips."""
        self._ended += sum(1 for outcome in outcomes if outcome.counts.videos)
        if self._ended - self._told >= self._step:  # what is kept back is less than what the source waits for
            self._told = self._ended
            self._gate.tell.remote(self._ended)

    def remind(self) -> None:
        """While nothing arrives: a gate that died has forgotten what it was told, and the source may wait at it."""
        self._told = self._ended
        self._gate.tell.remote(self._ended)

    def close(self) -> None:
        with suppress(ray.exceptions.RayError):
            # Behind all that was told and asked: killed with something left to do, Ray would talk of it to the user.
            ray.wait([self._gate.tell.remote(sys.maxsize)], timeout=PARTING_S)
        release(self._gate)
