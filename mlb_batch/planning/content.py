"""settle(): the plan of allocation `content`, once it is known how much clips repeat themselves."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import cycle, islice

from mlb_batch.cost.allocate import Redundant, solve_all, solve_sample
from mlb_batch.planning.build import pricer_of
from mlb_batch.planning.identity import fingerprint_of
from mlb_batch.planning.record import Plan
from mlb_batch.planning.setup import planned_with
from mlb_batch.spec import JobSpec

ENOUGH = 30  # measured videos: what fewer say of the others has no interval to rely on


def settle(spec: JobSpec, priced: Plan, measured: Sequence[Sequence[Redundant]]) -> Plan:
    """The plan with allocation `content` solved, once it is known how much the clips of some videos, or of all, repeat
    themselves; as it is where that of none is.

    Clips that could not be measured (not uploaded yet, say) may come under this schedule later, so what was measured is
    a sample of all. Few are filled up with clips that never repeat themselves, the dearest that there can be, where the
    missing ones could be opened. To count every missing one as that would leave most of the budget unspent for good,
    after one night of many; should they be dearer than the sample says, the purse holds the limit.
    """
    if not measured:
        return priced
    means = planned_with(spec, priced)
    pricer, budget = pricer_of(spec, means), priced.budget
    clips = [clip for video in measured for clip in video]
    if len(clips) >= priced.clips:
        rule = solve_all(pricer, clips, budget.limit, priced.keep)
    else:
        missing = max(0, min(ENOUGH, priced.videos - priced.unreadable) - len(measured))
        unlike = ([(clip, 0.0) for clip, _ in video] for video in islice(cycle(measured), missing))
        sample = [*measured, *unlike]
        rule = solve_sample(pricer, sample, priced.videos, budget.planned, budget.limit, priced.keep)
    settled = dataclasses.replace(priced, content=rule)
    return dataclasses.replace(settled, fingerprint=fingerprint_of(spec, means, settled.solved))
