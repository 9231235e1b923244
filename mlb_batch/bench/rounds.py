"""Contenders in turn: the same rounds for all, the order turned round every time, and ratios with their spread.

A machine that slows down or speeds up on the way does so for all of them, and a ratio is taken inside a round; seconds
of one contender alone are never compared across rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
Contender = Callable[[], object]
LEAST_ROUNDS = 3


@dataclass(frozen=True)
class Lap:
    """One turn of one contender."""

    wall_s: float
    core_s: float  # of all threads of this process


@dataclass(frozen=True)
class Spread:
    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g} to {self.high:.3g})"


def _nothing() -> None:
    pass


def lap(contender: Callable[[], T], settle: Callable[[], None] = _nothing) -> tuple[T, Lap]:
    """What it gives, and how long it took. `settle` waits for work that the device has only been given so far."""
    settle()
    begun_s, begun_core_s = time.perf_counter(), time.process_time()
    given = contender()
    settle()
    return given, Lap(time.perf_counter() - begun_s, time.process_time() - begun_core_s)


def alternate(
    contenders: Mapping[str, Contender], rounds: int, settle: Callable[[], None] = _nothing, warm: bool = True
) -> dict[str, list[Lap]]:
    """The laps of each contender, round by round; with `warm`, one more turn of each before that is not counted."""
    assert rounds >= LEAST_ROUNDS, rounds
    for contender in contenders.values() if warm else ():
        lap(contender, settle)
    laps: dict[str, list[Lap]] = {name: [] for name in contenders}
    for name in turns(contenders, rounds):
        laps[name].append(lap(contenders[name], settle)[1])
    return laps


def turns(names: Iterable[str], rounds: int) -> Iterator[str]:
    """Whose turn it is: everyone's in every round, the order turned round from one to the next."""
    order = list(names)
    for _ in range(rounds):
        yield from order
        order.reverse()


def each(things: Iterable[T], one: Callable[[T], object]) -> None:
    """A turn over all of them. Nothing is kept of what it gives, as a job keeps nothing."""
    for thing in things:
        one(thing)


def walls(laps: Sequence[Lap], parts: int = 1) -> list[float]:
    """Wall seconds of one of the `parts` that a lap went through."""
    return [one.wall_s / parts for one in laps]


def times_faster(yardstick_s: Sequence[float], ours_s: Sequence[float]) -> Spread:
    """How many times faster ours is, round by round."""
    return Spread.of([theirs / ours for theirs, ours in zip(yardstick_s, ours_s, strict=True)])


def three_ratios(seconds: Mapping[str, Sequence[float]]) -> dict[str, Spread]:
    """Of the contenders transformers, vanilla and pruned: always all three, for any of them alone can mislead."""
    return {
        "vanilla_over_transformers": times_faster(seconds["transformers"], seconds["vanilla"]),
        "pruned_over_vanilla": times_faster(seconds["vanilla"], seconds["pruned"]),
        "pruned_over_transformers": times_faster(seconds["transformers"], seconds["pruned"]),
    }
