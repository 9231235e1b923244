"""Batches of the steps to come, drawn by other processes while the model learns from this one.

A batch follows from its step's number alone, so who draws it and when changes nothing.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")
_AHEAD = 3  # batches for each process

_draw: Callable[[int], Any]  # of a process that draws


class Ahead(Generic[T]):
    """`made` gives what draws a step's batch; with no processes that is done here, when it is asked for.

    The processes end with the last of the `steps`: another stage has its own.
    """

    def __init__(self, made: Callable[[], Callable[[int], T]], steps: int, processes: int) -> None:
        self._steps, self._ahead = steps, _AHEAD * processes
        self._coming: dict[int, Future[bytes]] = {}
        if processes:
            self._pool = ProcessPoolExecutor(processes, get_context("spawn"), _begin, (made,))
        else:
            self._draw = made()

    def __call__(self, step: int) -> T:
        if not self._ahead:
            return self._draw(step)
        for coming in range(step, min(step + self._ahead + 1, self._steps)):
            if coming not in self._coming:
                self._coming[coming] = self._pool.submit(_drawn, coming)
        batch: T = pickle.loads(self._coming.pop(step).result())
        if step + 1 == self._steps:
            self._pool.shutdown(wait=False)
        return batch


def _begin(made: Callable[[], Callable[[int], Any]]) -> None:
    global _draw
    torch.set_num_threads(1)
    _draw = made()


def _drawn(step: int) -> bytes:
    """As bytes: tensors would come as shared memory, a file each, which a process may not open so many of."""
    return pickle.dumps(_draw(step))
