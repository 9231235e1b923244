"""Work on a GPU that is the same turn after turn, as one recorded graph: a step of generation is so many small kernels
that launching them one by one takes longer than running them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

PLAIN_TURNS = 3  # before it is recorded: that costs a few turns, and short answers have few


class Replay:
    """Of work that reads and writes tensors that stay where they are, and asks the device for nothing."""

    def __init__(self) -> None:
        self._turns = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, work: Callable[[], Tensor]) -> Tensor:
        """What the work gives, which is the same every time; once recorded, the same tensor with new numbers."""
        self._turns += 1
        if self._turns == PLAIN_TURNS + 1:
            self._record(work)
        if self._graph is None:
            return work()
        self._graph.replay()
        return self._out

    def _record(self, work: Callable[[], Tensor]) -> None:
        """Runs nothing. Where a device can't do it, the turns stay as they were."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._out = work()
        except RuntimeError as error:
            warnings.warn(f"generation is not recorded as a graph, and slower: {error}", stacklevel=2)
        else:
            self._graph = graph
