"""A whole job at a schedule, in every measure at once: what the plan prints beside the budget's own unit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mlb_batch.cost import flops, paper
from mlb_batch.cost.budget import Measure, feature_price
from mlb_batch.cost.calibration import Calibration
from mlb_batch.cost.flops import Bill
from mlb_batch.cost.schedule import ClipShape, Schedule
from mlb_batch.cost.solve import Pricer
from mlb_batch.cost.total import Histogram, summed

ScheduleOf = Callable[[ClipShape], Schedule]


@dataclass(frozen=True)
class Tally:
    bill: Bill
    macs: int


def tally(pricer: Pricer, clips: Histogram, schedule_of: ScheduleOf, new_tokens: int) -> Tally:
    """Bill and multiply-adds, `new_tokens` generated for each prompt."""

    def amounts(clip: ClipShape, schedule: Schedule) -> tuple[int, ...]:
        new = (new_tokens,) * len(clip.suffixes)
        bill = flops.price(pricer.shape, clip, schedule, new, feature_price(pricer.pair, clip, schedule))
        return *bill.parts, paper.macs(pricer.shape, clip, schedule)

    *parts, macs = summed(clips, schedule_of, amounts) or (0,) * 5
    return Tally(Bill(*parts), macs)


def nanoseconds(pricer: Pricer, clips: Histogram, schedule_of: ScheduleOf, new_tokens: int, device: Calibration) -> int:
    """Of the calibrated device, everything counted."""
    measure = Measure("total", "exact", new_tokens, device)

    def amounts(clip: ClipShape, schedule: Schedule) -> tuple[int, ...]:
        return measure.amounts(pricer.shape, clip, schedule, feature_price(pricer.pair, clip, schedule))

    return measure.total(summed(clips, schedule_of, amounts))
