"""What a budget counts, and what one as written comes to for a job: whole numbers of one unit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from mlb_batch.amounts import written
from mlb_batch.cost import flops, paper
from mlb_batch.cost.calibration import NANO, Calibration, generate_bytes
from mlb_batch.cost.schedule import ClipShape, Schedule
from mlb_batch.cost.shapes import ModelShape, PairedShape

Scope = Literal["llm", "total"]
Convention = Literal["exact", "paper"]
PETA = 10**15
MS_PER_HOUR = 3_600_000
FOR_THE_WHOLE_JOB = ("pflops", "gpu_hours")  # kinds whose amount does not grow with the videos


@dataclass(frozen=True)
class Measure:
    """Operations, the papers' multiply-adds, or nanoseconds of a calibrated device; of the language model or of all.

    Scope `total` counts generation at `new_tokens` a prompt, its most. The papers know the prefill of visual tokens
    alone; their `total` adds the multiply-adds of the vision side, and leaves generation out as they do.
    """

    scope: Scope
    convention: Convention = "exact"
    new_tokens: int = 0
    device: Calibration | None = None  # set: the measure is time

    @property
    def unit(self) -> str:
        if self.device:
            return "nanoseconds"
        return "FLOPs" if self.convention == "exact" else "multiply-adds"

    def amounts(self, shape: ModelShape, clip: ClipShape, schedule: Schedule, features: int = 0) -> tuple[int, ...]:
        """What a clip adds to the job: sums over clips, and only their sum is rounded (see `total`)."""
        if not self.device and self.convention == "paper":
            seen = paper.macs(shape, clip, schedule)
            vision = flops.encode(shape, schedule.encoded(clip)) + features
            return (seen if self.scope == "llm" else seen + vision // 2,)
        generated = self.scope == "total" and not self.device
        new = (self.new_tokens,) * len(clip.suffixes) if generated else ()
        bill = flops.price(shape, clip, schedule, new, features)
        if not self.device:
            return (bill.llm if self.scope == "llm" else bill.total,)
        if self.scope == "llm":
            return (0, bill.llm, 0)
        width, batch = self.device.bytes_per_number, self.device.batch
        return bill.vision, bill.llm, moved_bytes(shape, clip, schedule, self.new_tokens, width, batch)

    def total(self, amounts: tuple[int, ...]) -> int:
        if not amounts:
            return 0  # a job without clips
        return self.device.nanoseconds(*amounts) if self.device else amounts[0]


def moved_bytes(shape: ModelShape, clip: ClipShape, schedule: Schedule, new_tokens: int, width: int, batch: int) -> int:
    """Bytes that a clip's generation moves, over all its prompts, where so many sequences generate together.

    `width`: bytes of a number.
    """
    cached = [flops.cache_lengths(shape, clip, schedule, prompt) for prompt in range(len(clip.suffixes))]
    return sum(generate_bytes(shape.decoder, lengths, new_tokens, width, batch) for lengths in cached)


def feature_price(pair: PairedShape | None, clip: ClipShape, schedule: Schedule) -> int:
    """What the paired model costs where the schedule asks for it: it sees the frames that go on, and every prompt."""
    return flops.look(pair, schedule.frames, len(clip.suffixes)) if pair and schedule.features else 0


def paid_columns(scope: Scope, convention: Convention) -> tuple[str, ...]:
    """Where a row says what it cost in this measure (in operations; time is in no row)."""
    if convention == "paper":
        return ("macs_paper_executed",) if scope == "llm" else ("macs_paper_executed", "flops_vision")
    return ("flops_prefill", "flops_scoring") if scope == "llm" else ("flops_executed",)


def paid(scope: Scope, convention: Convention, sums: Mapping[str, int]) -> int:
    """By the sums of those columns; a multiply-add is two of the operations that `flops_vision` counts."""
    vision = sums["flops_vision"] // 2 if convention == "paper" and scope == "total" else 0
    return vision + sum(sums[name] for name in paid_columns(scope, convention) if name != "flops_vision")


def limit(kind: str, amount: float, vanilla: int, video_ms: int) -> int:
    """What a budget as written allows, in its measure's unit, rounded down. `vanilla` is in the same unit."""
    exact = written(amount)
    if kind == "ratio":
        return int(exact * vanilla)
    if kind == "pflops":
        return int(exact * PETA)
    if kind == "pflops_per_hour_of_video":
        return int(exact * PETA * Fraction(video_ms, MS_PER_HOUR))
    assert kind == "gpu_hours", kind
    return int(exact * 3600 * NANO)


def amount_of(kind: str, cost: int, vanilla: int, video_ms: int) -> float:
    """The budget of this kind that `cost` would need: what `limit` undoes."""
    if kind == "ratio":
        return cost / vanilla if vanilla else 0.0
    if kind == "pflops":
        return cost / PETA
    if kind == "pflops_per_hour_of_video":
        return cost / PETA * MS_PER_HOUR / video_ms if video_ms else 0.0
    return cost / NANO / 3600
