"""How much of the input one chain takes: all of it, as a rule, and a very long input one part after the other.

Ray Data keeps a record of every block that passed until its chain ends, 1 to 3 KB a video in the driver: a month of
videos would be tens of gigabytes. A new chain begins with none, and costs one start of the actors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mlb_batch.chain.pace import Pace

PART_CLIPS = 1_000_000


@dataclass(frozen=True)
class Part:
    """Of the input's rows from `begin` to `end` the videos whose ids fall in the share, as far ahead as the pace lets
    them.
    """

    share: float = 1.0
    begin: int = 0
    end: int | None = None
    pace: Pace | None = None


def parts(rows: int, clips_each: int, share: float, under_way: int) -> Iterator[Part]:
    """Of rows, not of videos: what has passed is then stepped over unread. `clips_each`: that a row has, about."""
    step = max(1, PART_CLIPS // clips_each)
    for begin in range(0, max(1, rows), step):
        yield Part(share, begin, min(begin + step, rows), Pace(under_way))
