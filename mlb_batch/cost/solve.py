"""The largest keep whose cost is within a limit, for a whole job at once and with the method's own rounding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mlb_batch.cost.budget import Measure, feature_price
from mlb_batch.cost.schedule import WHOLE, ClipShape, Method, Schedule
from mlb_batch.cost.shapes import ModelShape, PairedShape
from mlb_batch.cost.total import Histogram, summed


@dataclass(frozen=True)
class Pricer:
    """Clips at a keep -> their cost in the budget's measure."""

    shape: ModelShape
    method: Method
    measure: Measure
    pair: PairedShape | None = None

    def clip(self, clip: ClipShape, keep: int) -> int:
        return self.measure.total(self._amounts(clip, self.method.schedule(self.shape, clip, keep)))

    def job(self, clips: Histogram, keep: int) -> int:
        return self._sum(clips, lambda clip: self.method.schedule(self.shape, clip, keep))

    def vanilla(self, clips: Histogram) -> int:
        """The same job unpruned, with everything shared between a clip's prompts that can be."""
        return self._sum(clips, lambda clip: Schedule(clip.frames))

    def vanilla_clip(self, clip: ClipShape) -> int:
        return self.measure.total(self._amounts(clip, Schedule(clip.frames)))

    def _amounts(self, clip: ClipShape, schedule: Schedule) -> tuple[int, ...]:
        return self.measure.amounts(self.shape, clip, schedule, feature_price(self.pair, clip, schedule))

    def _sum(self, clips: Histogram, schedule_of: Callable[[ClipShape], Schedule]) -> int:
        return self.measure.total(summed(clips, schedule_of, self._amounts))


@dataclass(frozen=True)
class Solution:
    at: int
    cost: int


def largest(cost: Callable[[int], int], limit: int, low_cost: int, top: int = WHOLE) -> Solution:
    """The largest whole number from 0 to `top` with cost <= limit, for a cost that never falls.

    `low_cost` is cost(0), which fits. Every other probe is where a straight line through the bracket's ends meets the
    limit, so that a smooth cost takes half the probes of bisection; a cost that falls is a method's mistake.
    """
    assert low_cost <= limit, "the floor is over the limit: refuse the budget before solving it"
    low, high = (0, low_cost), (top, cost(top))
    assert low[1] <= high[1], "the cost falls as keep rises"
    if high[1] <= limit:
        return Solution(top, high[1])
    probes = 0
    while high[0] - low[0] > 1:
        at = _between(low, high, limit) if probes % 3 else (low[0] + high[0]) // 2
        now = cost(at)
        assert low[1] <= now <= high[1], f"the cost falls between {low[0]} and {high[0]}"
        low, high = ((at, now), high) if now <= limit else (low, (at, now))
        probes += 1
    return Solution(*low)


def _between(low: tuple[int, int], high: tuple[int, int], limit: int) -> int:
    """Where the line from `low` to `high` meets the limit, and never at an end."""
    at = low[0] + (limit - low[1]) * (high[0] - low[0]) // (high[1] - low[1])
    return min(max(at, low[0] + 1), high[0] - 1)
