"""Which clip gets how much of the job's budget, by how much it repeats itself: allocation `content`.

The keep of a clip is a function of its redundancy (0: every frame is new, 1: every frame is the same) and of one
number that is solved once for the job. Small jobs solve it over all of their clips. Large ones solve it on a sample, so
that the 99 % upper bound of the job's cost fits; a Reserve then sees to it that the job never exceeds its limit all the
same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlb_batch.cost.estimate import ONE_SIDED_99, ratio_total
from mlb_batch.cost.schedule import WHOLE, ClipShape
from mlb_batch.cost.solve import Pricer, largest

Redundant = tuple[ClipShape, float]  # a clip and its redundancy

FLOOR_SHARE = 4  # no clip goes under a quarter of the keep that `equal` would give it
TOP_LEVEL = 100 * WHOLE  # from here on a clip of which one hundredth is new keeps all its tokens


@dataclass(frozen=True)
class ContentRule:
    """keep = level x (1 - redundancy), from `floor` to WHOLE: it never rises with redundancy or falls with level."""

    level: int  # millionths; may exceed WHOLE
    floor: int  # millionths under which no clip goes

    def keep(self, redundancy: float) -> int:
        """Millionths. The redundancy is rounded first, so that the last bits of a float don't move a clip."""
        assert 0.0 <= redundancy <= 1.0, redundancy
        fresh = WHOLE - round(redundancy * 1000) * (WHOLE // 1000)
        return max(self.floor, min(WHOLE, self.level * fresh // WHOLE))


def floor_keep(equal_keep: int) -> int:
    return equal_keep // FLOOR_SHARE


def solve_all(pricer: Pricer, clips: Sequence[Redundant], limit: int, equal_keep: int) -> ContentRule:
    """The largest level at which all the clips together cost at most `limit`; 0 where none is."""
    floor = floor_keep(equal_keep)

    def cost(level: int) -> int:
        return sum(_costs(pricer, clips, ContentRule(level, floor)))

    lowest = cost(0)
    return ContentRule(largest(cost, limit, lowest, TOP_LEVEL).at if lowest <= limit else 0, floor)


def solve_sample(
    pricer: Pricer, sample: Sequence[Sequence[Redundant]], videos: int, equal_cost: int, limit: int, equal_keep: int
) -> ContentRule:
    """The largest level at which the job's cost is at most `limit` with 99 % confidence; 0 where none is.

    The sample holds the clips of each of some videos, a random share of the job's; clips of one video are alike, and
    tell less than as many of others. `equal_cost` is what the whole job costs at the keep that `equal` gives: a video's
    cost is estimated as a multiple of that, because both grow with its length.
    """
    clips = [clip for video in sample for clip in video]
    equal = [sum(pricer.clip(clip, equal_keep) for clip, _ in video) for video in sample]
    lowest = sum(_costs(pricer, clips, ContentRule(0, floor_keep(equal_keep))))
    allowed = limit * sum(equal) // equal_cost  # the sample's share of the limit
    while allowed > lowest:
        rule = solve_all(pricer, clips, allowed, equal_keep)
        costs = [sum(_costs(pricer, video, rule)) for video in sample]
        _, _, high = ratio_total(costs, equal, equal_cost, videos, ONE_SIDED_99)
        if high <= limit:
            return rule
        allowed = min(int(allowed * limit / high), sum(costs) - 1)
    return ContentRule(0, floor_keep(equal_keep))


def _costs(pricer: Pricer, clips: Sequence[Redundant], rule: ContentRule) -> list[int]:
    return [pricer.clip(clip, rule.keep(redundancy)) for clip, redundancy in clips]


class Reserve:
    """What is left of a limit, with the floor of every clip still to come set aside: no grant takes more than is left.

    Where the floors come to more than they were told to be, the last clips may still find too little for their own.
    """

    def __init__(self, limit: int, floors: int) -> None:
        """`floors`: what all the clips together cost at the floor keep; it fits the limit."""
        assert floors <= limit, "the floor is over the limit: refuse the budget before spending it"
        self._left, self._floors = limit, floors

    def grant(self, wanted: int, floor: int) -> bool:
        """Whether the next clip may spend what it wants; where not, it gets its floor. Call it once for each clip."""
        self._floors = max(0, self._floors - floor)
        granted = wanted + self._floors <= self._left
        self._left -= wanted if granted else floor
        return granted

    @property
    def left(self) -> int:
        return self._left
