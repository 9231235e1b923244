"""Sums over a job's clips, fast: clips that differ in nothing but the lengths of their prompts are priced together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from mlb_batch.cost.schedule import ClipShape, Schedule

Histogram = Mapping[ClipShape, int]
Amounts = Callable[[ClipShape, Schedule], tuple[int, ...]]


@dataclass
class _Group:
    """Clips of one schedule with the same number of prompts: how many, their suffixes' sum and sum of squares."""

    clips: int = 0
    sum: int = 0
    squares: int = 0

    def add(self, clip: ClipShape, count: int) -> None:
        self.clips += count
        self.sum += count * sum(clip.suffixes)
        self.squares += count * sum(s * s for s in clip.suffixes)


def summed(clips: Histogram, schedule_of: Callable[[ClipShape], Schedule], amounts: Amounts) -> tuple[int, ...]:
    """The sum of `amounts` over a histogram of clips."""
    groups: dict[tuple[ClipShape, Schedule], _Group] = {}
    for clip, count in clips.items():
        plain = replace(clip, suffixes=(1,) * len(clip.suffixes))
        groups.setdefault((plain, schedule_of(clip)), _Group()).add(clip, count)
    totals = [_group_total(plain, schedule, group, amounts) for (plain, schedule), group in groups.items()]
    return tuple(map(sum, zip(*totals, strict=True)))


def _group_total(plain: ClipShape, schedule: Schedule, group: _Group, amounts: Amounts) -> tuple[int, ...]:
    """Under one schedule, every amount is a + b x (sum of the suffixes) + c x (sum of their squares).

    Attention is where the squares come from; all else is linear. Three suffixes give the three numbers exactly.
    """
    prompts = len(plain.suffixes)
    rest = plain.suffixes[1:]
    ones, twos, threes = (amounts(replace(plain, suffixes=(first, *rest)), schedule) for first in (1, 2, 3))
    more, squares = group.sum - group.clips * prompts, group.squares - group.clips * prompts
    out = []
    for at_1, at_2, at_3 in zip(ones, twos, threes, strict=True):
        twice_c = at_3 - 2 * at_2 + at_1
        twice_b = 2 * (at_2 - at_1) - 3 * twice_c
        twice = twice_b * more + twice_c * squares
        assert twice % 2 == 0, "an amount is not quadratic in the suffixes"
        out.append(group.clips * at_1 + twice // 2)
    return tuple(out)
