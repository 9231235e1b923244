"""Plan: what a job will do and cost, as one value that prints and goes to JSON; and what solving its budget yielded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlb_batch.amounts import percent
from mlb_batch.cost.allocate import ContentRule
from mlb_batch.cost.budget import Convention, Scope, paid, paid_columns
from mlb_batch.cost.flops import Bill


@dataclass(frozen=True)
class Solved:
    """All that solving a budget yields."""

    keep: int
    frames: int
    content: ContentRule | None = None


@dataclass(frozen=True)
class Budget:
    """The budget as written, and what it comes to for this job."""

    kind: str  # ratio | pflops | pflops_per_hour_of_video | gpu_hours
    amount: float
    scope: Scope
    convention: Convention
    allocation: str  # equal | content
    unit: str  # of the four numbers below: FLOPs | multiply-adds | nanoseconds
    limit: int  # what may be spent
    planned: int  # what the solved keep spends, generation at max_new_tokens where the scope counts it
    vanilla: int  # the same job unpruned, shared between the prompts of a clip
    floor: int  # the least that this method can spend
    content_floor: int = 0  # allocation `content`: what all clips cost at the least keep that it gives any

    @property
    def columns(self) -> tuple[str, ...]:
        return paid_columns(self.scope, self.convention)

    def spent(self, sums: Mapping[str, int]) -> int | None:
        """By the sums of those columns; None where the budget is time, which is in no row."""
        return None if self.unit == "nanoseconds" else paid(self.scope, self.convention, sums)

    @property
    def use(self) -> float:
        """The share of the limit that is planned to be spent."""
        return self.planned / self.limit if self.limit else 0.0

    @property
    def over(self) -> str:
        """What is to be said where more will be spent than the budget as written: more videos came, or other ones."""
        if self.planned <= self.limit:
            return ""
        return (
            f"the schedule that an earlier run froze now costs {percent(self.use)} of the budget as written; --replan "
            "solves again (and annotates anew)"
        )


@dataclass(frozen=True)
class Estimate:
    """How far the numbers of a plan can be trusted where not every header was probed: (low, high) at `confidence`."""

    sampled_videos: int
    confidence: float
    hours: tuple[float, float]
    clips: tuple[int, int]
    vanilla: tuple[int, int]  # Budget.vanilla's unit
    planned: tuple[int, int]


@dataclass(frozen=True)
class Layer:
    """What one decoder layer of the commonest clip sees of the visual tokens."""

    index: int
    visual: int  # of one copy; in a two-stage method's scanning layers, of all segments and all that starts again there
    copies: int  # 1, or one for each prompt


@dataclass(frozen=True)
class Plan:
    """Everything that `mlb-batch plan` prints. Bills are exact-convention FLOPs, whatever the budget counts in."""

    fingerprint: str
    key: str  # names the frozen schedule: the fingerprint's fields without what was solved
    reused: bool  # the schedule was frozen by an earlier run
    model: str
    revision: str
    method: str
    select: str
    keep: int  # millionths of a clip's visual tokens; under allocation `content`, what `equal` would give
    content: ContentRule | None  # a clip's own keep from its redundancy, once `settle` has solved it
    frames: int  # the sampling's count: fewer than asked for where only that meets the budget
    frame_resize: tuple[int, int] | int  # what becomes of a frame: to (height, width), or its shortest edge to this
    frame_crop: tuple[int, int] | None  # ... and then the middle of it
    frame_resample: str  # the filter that resizes it
    videos: int
    unreadable: int  # headers that could not be read; a ratio leaves them out, else priced at the sampling's full count
    problems: int  # annotations that can't be made at all, as the input itself shows
    hours: float
    clips: int
    prompts: int  # expected annotations: clips x their prompts, and the problems
    visual_tokens: int
    text_tokens: int
    budget: Budget
    vanilla: Bill
    planned: Bill  # generation at `expected_new_tokens`
    planned_worst: Bill  # generation at max_new_tokens
    paper_vanilla: int
    paper_planned: int
    expected_new_tokens: int
    layers: tuple[Layer, ...]
    estimate: Estimate | None  # None: every header was probed
    device: str  # that was calibrated with this model; empty: none was
    gpu_hours: float | None  # of that device, generation at `expected_new_tokens`
    gpu_hours_vanilla: float | None
    price: float | None
    bytes_read: int
    bytes_written: int
    warnings: tuple[str, ...]
    pair_revision: str | None  # of the paired model, where one looks

    @property
    def solved(self) -> Solved:
        return Solved(self.keep, self.frames, self.content)

    @property
    def settled(self) -> bool:
        """Whether later runs can follow it: under allocation `content`, once that is solved."""
        return self.budget.allocation != "content" or self.content is not None

    @property
    def clips_each(self) -> int:
        """Of a video, about."""
        return max(1, -(-self.clips // max(1, self.videos)))

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)
