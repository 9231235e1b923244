"""A race between ways to do the same with clips: each in the batch that suits it best, then all of them in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from mlb_batch.bench.machine import settler
from mlb_batch.bench.rounds import Contender, Spread, alternate, lap, walls

Make = Callable[[int], Contender]  # for so many clips at once


@dataclass(frozen=True)
class Race:
    seconds: dict[str, list[float]]  # of one clip, round by round
    batch: dict[str, int]
    tried: dict[str, dict[int, float]]  # seconds of one clip at each batch, of a single lap
    peak_bytes: dict[str, int]  # of GPU memory; empty on a CPU

    @property
    def spreads(self) -> dict[str, Spread]:
        return {name: Spread.of(values) for name, values in self.seconds.items()}


@torch.inference_mode()
def race(makes: Mapping[str, Make], batches: Mapping[str, Sequence[int]], rounds: int, device: torch.device) -> Race:
    """`batches`: what each may choose from, ascending; one that does not fit in memory ends the choice."""
    settle = settler(device)
    tried = {name: _tried(make, batches[name], settle) for name, make in makes.items()}
    batch = {name: min(found, key=lambda size: (found[size], size)) for name, found in tried.items()}
    contenders = {name: make(batch[name]) for name, make in makes.items()}
    laps = alternate(contenders, rounds, settle, warm=False)  # the choice has warmed all of them up
    peaks = {name: _peak(one, device) for name, one in contenders.items()} if device.type == "cuda" else {}
    return Race({name: walls(some, batch[name]) for name, some in laps.items()}, batch, tried, peaks)


def _tried(make: Make, batches: Sequence[int], settle: Callable[[], None]) -> dict[int, float]:
    found: dict[int, float] = {}
    for size in batches:
        try:
            contender = make(size)
            lap(contender, settle)
            found[size] = lap(contender, settle)[1].wall_s / size
        except torch.OutOfMemoryError:
            if not found:
                raise
            break
    return found


def _peak(contender: Contender, device: torch.device) -> int:
    torch.cuda.reset_peak_memory_stats(device)
    contender()
    return torch.cuda.max_memory_allocated(device)


def chain(*steps: Callable[..., object]) -> Callable[..., object]:
    """One step after the other, each on what the one before gave."""
    return partial(_run, steps)


def _run(steps: Sequence[Callable[..., object]], value: object) -> object:
    for step in steps:
        value = step(value)
    return value
