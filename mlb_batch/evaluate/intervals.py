"""95 % intervals for questions that come several to a clip, and so are not independent.

A proportion gets a Wilson interval at its effective number of questions: as many independent ones as would vary as much
as these clips do. Differences between two cells, means of scores and averages over kinds get a normal interval by how
far each clip moves them; two cells are always compared on the same clips. Where nearly all clips are alike, such an
interval is too short, and where all are it is nothing: so a few clips are added that say the opposite of each other
(Bonett and Price 2012 for paired differences, Agresti and Coull 1998 for means).

Shapes: C clips, A added ones; K shares that are averaged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Z = 1.959964  # two-sided 95 %
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Share:
    """What was reached of what could be, clip by clip: right answers of questions, true facts of those said."""

    reached_C: Floats
    of_C: Floats

    @property
    def value(self) -> float:
        return float(self.reached_C.sum() / self.of_C.sum())

    @property
    def empty(self) -> bool:
        return not self.of_C.any()


def proportion(share: Share) -> Interval:
    """Wilson's interval at the effective number of questions."""
    p, questions, clips = share.value, float(share.of_C.sum()), _clips([share])
    if 0 < p < 1 and clips > 1:
        spread = share.reached_C - p * share.of_C
        variance = clips / (clips - 1) * float((spread**2).sum()) / questions**2
        effective = questions / max(1.0, variance / (p * (1 - p) / questions))
    else:
        effective = float(clips)  # nothing varies: how alike the questions of a clip are can't be seen
    centre = (p + Z**2 / (2 * effective)) / (1 + Z**2 / effective)
    half = Z / (1 + Z**2 / effective) * math.sqrt(p * (1 - p) / effective + Z**2 / (4 * effective**2))
    return Interval(p, max(0.0, centre - half), min(1.0, centre + half))


def average(shares: Sequence[Share], most: float = 1.0) -> Interval:
    """The mean of several shares, each of at most `most`; of one alone its own value."""
    added_A = np.array([most, most, 0, 0])
    moved = [_moved(share, added_A) for share in shares]
    return _normal(float(np.mean([share.value for share in shares])), moved, _clips(shares), (0.0, most))


def difference(one: Sequence[Share], other: Sequence[Share], most: float = 1.0) -> Interval:
    """The mean of `one` less the mean of `other`, share by share on the same clips: one is added that only `one` has
    right, and one that only `other` has.
    """
    won_A, lost_A = np.array([most, 0]), np.array([0, most])
    moved = [_moved(a, won_A).less(_moved(b, lost_A)) for a, b in zip(one, other, strict=True)]
    value = float(np.mean([a.value for a in one]) - np.mean([b.value for b in other]))
    return _normal(value, moved, _clips(one), (-most, most))


@dataclass(frozen=True, eq=False)
class _Moved:
    """A share with the added clips, and how far each clip moves it from where the others have it."""

    value: float
    by_C: Floats
    by_A: Floats

    def less(self, other: _Moved) -> _Moved:
        return _Moved(self.value - other.value, self.by_C - other.by_C, self.by_A - other.by_A)


def _moved(share: Share, added_A: Floats) -> _Moved:
    """Each added clip weighs the root of a clip's questions, between one of them and all: where few clips differ, it
    can't be seen how alike their questions are.
    """
    size = math.sqrt(share.of_C.sum() / _clips([share]))
    questions = share.of_C.sum() + size * len(added_A)
    value = float((share.reached_C.sum() + size * added_A.sum()) / questions)
    return _Moved(value, (share.reached_C - value * share.of_C) / questions, size * (added_A - value) / questions)


def _clips(shares: Sequence[Share]) -> int:
    return int(np.any([share.of_C > 0 for share in shares], axis=0).sum())


def _normal(value: float, moved: Sequence[_Moved], clips: int, ends: tuple[float, float]) -> Interval:
    """Around the centre that the added clips have drawn towards the middle; shares of the same clips move together."""
    by_C = np.mean([one.by_C for one in moved], axis=0)
    by_KA = np.array([one.by_A for one in moved]) / len(moved)
    every = clips + by_KA.size
    half = Z * math.sqrt(every / (every - 1) * float((by_C**2).sum() + (by_KA**2).sum()))
    centre = float(np.mean([one.value for one in moved]))
    low, high = min(value, centre - half), max(value, centre + half)
    return Interval(value, max(ends[0], low), min(ends[1], high))
