"""What a clip was planned to cost, did cost, and would have cost unpruned, split over its answers to the last unit."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mlb_batch.cost import flops, paper
from mlb_batch.cost.flops import Bill
from mlb_batch.cost.schedule import ClipShape, Schedule
from mlb_batch.cost.shapes import ModelShape


@dataclass(frozen=True)
class Shares:
    """One answer's shares of its clip."""

    planned: Bill
    executed: Bill
    vanilla: Bill
    paper_planned: int
    paper_executed: int
    paper_vanilla: int


def shares(shape: ModelShape, clip: ClipShape, schedule: Schedule, executed: Bill, executed_macs: int,
           generated: list[int], expected: int, features: int) -> list[Shares]:  # fmt: skip
    """The clip's bill over its answers. `generated`: each answer's own operations; `expected`: tokens planned each."""
    unpruned, ways = Schedule(frames=clip.frames), len(clip.suffixes)
    planned = _planned(shape, clip, schedule, expected, features)
    vanilla = _planned(shape, clip, unpruned, expected, 0)
    ran = [replace(b, generate=g) for b, g in zip(flops.split(executed, ways), generated, strict=True)]
    macs = (paper.macs(shape, clip, schedule), executed_macs, paper.macs(shape, clip, unpruned))
    columns = zip(planned, ran, vanilla, *(flops.evenly(m, ways) for m in macs), strict=True)
    return [Shares(*row) for row in columns]


def _planned(shape: ModelShape, clip: ClipShape, schedule: Schedule, expected: int, features: int) -> list[Bill]:
    """Everything but generation is split evenly; each answer's generation is its own."""
    ways = len(clip.suffixes)
    common = flops.split(flops.price(shape, clip, schedule, features=features), ways)
    own = [flops.generate(shape.decoder, flops.cache_lengths(shape, clip, schedule, i), expected) for i in range(ways)]
    return [replace(bill, generate=g) for bill, g in zip(common, own, strict=True)]
