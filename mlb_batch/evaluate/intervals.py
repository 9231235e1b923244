"""95 % intervals for questions that come several to a clip, and so are not independent.

A proportion gets a Wilson interval at its effective number of questions: as many independent ones as would vary as much
as these clips do. Differences between two cells, means of scores and averages over kinds get percentiles of a
bootstrap over clips, seeded, with the same draws for everything: so two cells are always compared on the same clips.

Shapes: C clips, B draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Z = 1.959964  # two-sided 95 %
_LOW, _HIGH = 2.5, 97.5
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


def draws(clips: int, replicates: int, seed: int) -> NDArray[np.float32]:
    """How often each clip is drawn in each of B samples of C clips with replacement."""
    rng = np.random.default_rng(seed)
    drawn_BC = rng.integers(0, clips, (replicates, clips), dtype=np.int32)
    return np.stack([np.bincount(row, minlength=clips) for row in drawn_BC]).astype(np.float32)


def proportion(share: Share) -> Interval:
    """Wilson's interval at the effective number of questions."""
    p, questions = share.value, float(share.of_C.sum())
    asked = share.of_C > 0
    clips = int(asked.sum())
    if 0 < p < 1 and clips > 1:
        spread = share.reached_C[asked] - p * share.of_C[asked]
        variance = clips / (clips - 1) * float((spread**2).sum()) / questions**2
        effective = questions / max(1.0, variance / (p * (1 - p) / questions))
    else:
        effective = float(clips)  # nothing varies: how alike the questions of a clip are can't be seen
    centre = (p + Z**2 / (2 * effective)) / (1 + Z**2 / effective)
    half = Z / (1 + Z**2 / effective) * math.sqrt(p * (1 - p) / effective + Z**2 / (4 * effective**2))
    return Interval(p, max(0.0, centre - half), min(1.0, centre + half))


def average(shares: Sequence[Share], draws_BC: NDArray[np.float32], most: float = 1.0) -> Interval:
    """The mean of several shares, each of at most `most`; of one alone its own value."""
    value = float(np.mean([share.value for share in shares]))
    found = _around(value, [_drawn(share, draws_BC) for share in shares], shares, most)
    return Interval(value, max(0.0, found.low), min(most, found.high))


def difference(
    one: Sequence[Share], other: Sequence[Share], draws_BC: NDArray[np.float32], most: float = 1.0
) -> Interval:  # fmt: skip
    """The mean of `one` less the mean of `other`, share by share on the same draws of clips."""
    value = float(np.mean([share.value for share in one]) - np.mean([share.value for share in other]))
    drawn = [_drawn(a, draws_BC) - _drawn(b, draws_BC) for a, b in zip(one, other, strict=True)]
    found = _around(value, drawn, one, most)
    return Interval(value, max(-most, found.low), min(most, found.high))


def _drawn(share: Share, draws_BC: NDArray[np.float32]) -> Floats:
    """The share in every draw; no number where a draw has nothing that it is a share of."""
    both_C2 = np.stack([share.reached_C, share.of_C], axis=1).astype(np.float32)
    reached_B, of_B = (draws_BC @ both_C2).astype(np.float64).T
    out: Floats = np.divide(reached_B, of_B, out=np.full(len(of_B), np.nan), where=of_B > 0)
    return out


def _around(value: float, drawn: Sequence[Floats], shares: Sequence[Share], most: float) -> Interval:
    """Percentiles of the mean over what was drawn of each share, and room for what no draw could show."""
    drawn_B = np.mean(drawn, axis=0)
    known = drawn_B[~np.isnan(drawn_B)]
    low, high = np.percentile(known, [_LOW, _HIGH]) if len(known) else (value, value)
    room = most * np.mean([_unseen(share, one_B) for share, one_B in zip(shares, drawn, strict=True)])
    return Interval(value, float(low - room), float(high + room))


def _unseen(share: Share, drawn_B: Floats) -> float:
    """Where all draws are alike, Wilson's upper end for what was seen on none of so many clips."""
    known = drawn_B[~np.isnan(drawn_B)]
    alike = not len(known) or known.min() == known.max()
    return Z**2 / (int((share.of_C > 0).sum()) + Z**2) if alike else 0.0
