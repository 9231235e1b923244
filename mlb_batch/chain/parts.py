"""How much of the input one chain takes: all of it, as a rule, and a very long input one part after the other.

Ray Data keeps a record of every block that passed until its chain ends, 1 to 3 KB a video in the driver: a month of
videos would be tens of gigabytes. A new chain begins with none, and costs one start of the actors.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from mlb_batch.chain.pace import Pace

PART_VIDEOS = 1_000_000


@dataclass(frozen=True)
class Part:
    """Of the first `limit` rows the videos whose ids fall in the share, and of these the ones from `begin` to `end`, as
    far ahead as the pace lets them.
    """

    share: float = 1.0
    limit: int | None = None
    begin: int = 0
    end: int = sys.maxsize
    pace: Pace | None = None


def parts(share: float, limit: int | None, takers: int) -> Iterator[Part]:
    """For as long as one asks: how many videos there are shows only when they have passed, even of so many rows."""
    for begin in count(0, PART_VIDEOS):
        yield Part(share, limit, begin, begin + PART_VIDEOS, Pace(takers))
