"""A survey and a budget -> the keep, and the frames where the vision tower alone would break the budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from mlb_batch.cost.budget import FOR_THE_WHOLE_JOB, amount_of, limit
from mlb_batch.cost.estimate import ONE_SIDED_99, TWO_SIDED_99, ratio_total
from mlb_batch.cost.schedule import WHOLE, ClipShape
from mlb_batch.cost.solve import Pricer, largest
from mlb_batch.cost.total import Histogram
from mlb_batch.errors import BudgetError
from mlb_batch.planning.record import Solved
from mlb_batch.planning.survey import Seen, Survey
from mlb_batch.prune import Pruning
from mlb_batch.spec_parts import BudgetSpec

# Under scope `total`, fewer frames are planned where no keep fits with all of them: the most frames of this ladder at
# which a tenth of their tokens fits; where none does, the most at which anything fits.
LADDER = (1, 3 / 4, 1 / 2, 3 / 8, 1 / 4, 3 / 16, 1 / 8, 1 / 16, 1 / 32)
WORTH_KEEPING = WHOLE // 10
WIDE = 0.05  # half of the 99 % interval of a sample's cost, of that cost: the bound would leave as much unspent


@dataclass(frozen=True)
class Case:
    """A survey under a budget, in the budget's unit and for the surveyed videos."""

    budget: BudgetSpec
    pricer: Pricer
    survey: Survey
    frames: int  # the sampling's full count

    @cached_property
    def clips(self) -> Counter[ClipShape]:
        return self.survey.histogram()

    @property
    def video_ms(self) -> int:
        return sum(one.video_ms for one in self.survey.seen)

    def scaled(self, amount: int) -> int:
        """From the surveyed videos to all of them."""
        return amount * self.survey.videos // max(1, len(self.survey.seen))

    def limit(self, vanilla: int) -> int:
        """The surveyed videos' part of what the budget allows."""
        whole = limit(self.budget.kind, self.budget.amount, vanilla, self.video_ms)
        if self.budget.kind in FOR_THE_WHOLE_JOB:
            return whole * len(self.survey.seen) // max(1, self.survey.videos)
        return whole


def fewer(clips: Histogram, frames: int) -> Counter[ClipShape]:
    """The same clips with at most so many frames."""
    out: Counter[ClipShape] = Counter()
    for clip, count in clips.items():
        out[replace(clip, frames=min(clip.frames, frames))] += count
    return out


def solve(case: Case) -> Solved:
    """The largest keep within the budget; on a sample, within it with 99 % confidence. BudgetError under the floor."""
    clips, pricer = case.clips, case.pricer
    if case.budget.kind == "pflops_per_hour_of_video" and clips and not case.video_ms:
        raise BudgetError(
            "budget.pflops_per_hour_of_video: none of these videos says how long it is; give a ratio, or pflops for all"
        )
    allowed = case.limit(pricer.vanilla(clips))
    frames = _frames(case, clips, allowed)
    clips = fewer(clips, frames)
    low = pricer.job(clips, 0)
    if low > allowed:
        raise BudgetError(_below_floor(case))
    keep = largest(lambda at: pricer.job(clips, at), allowed, low).at
    while not case.survey.complete:
        over, cost = _over(case, frames, keep), pricer.job(clips, keep)
        if over <= 0 or cost == low:  # nothing costs less; the plan warns by its interval
            break
        allowed = max(low, min(allowed - over, cost - 1))
        keep = largest(lambda at: pricer.job(clips, at), allowed, low).at
    return Solved(keep, frames)


def _frames(case: Case, clips: Histogram, allowed: int) -> int:
    if case.pricer.job(clips, 0) <= allowed:
        return case.frames
    steps = ladder(case)
    for keep in (WORTH_KEEPING, 0):
        for frames in steps:
            if case.pricer.job(fewer(clips, frames), keep) <= allowed:
                return frames
    return steps[-1]


def ladder(case: Case) -> list[int]:
    """Numbers of frames that the plan may come down to; under scope `llm` the frames are the user's alone."""
    steps = LADDER if case.budget.scope == "total" else LADDER[:1]
    return sorted({max(1, int(case.frames * step)) for step in steps}, reverse=True)


def _over(case: Case, frames: int, keep: int) -> int:
    """By how much the 99 % upper bound of the sample's cost passes its share of the budget; not above zero: it fits."""
    costs, shares = per_video(case, frames, keep), _shares(case)
    sizes = [1] * len(costs)
    excess = [cost - share for cost, share in zip(costs, shares, strict=True)]
    _, _, high = ratio_total(excess, sizes, len(sizes), case.survey.videos, ONE_SIDED_99)
    return int(high) + (high > int(high))


def per_video(case: Case, frames: int, keep: int) -> list[int]:
    """Each surveyed video's cost."""
    cost = {clip: case.pricer.clip(clip, keep) for clip in fewer(case.clips, frames)}
    return [sum(cost[replace(c, frames=min(c.frames, frames))] for c in one.clips) for one in case.survey.seen]


def vanilla_per_video(case: Case) -> list[int]:
    vanilla = {clip: case.pricer.vanilla_clip(clip) for clip in case.clips}
    return [sum(vanilla[clip] for clip in one.clips) for one in case.survey.seen]


def telling(case: Case) -> bool:
    """Whether the surveyed videos say what all of them cost, unpruned, to within a few per cent."""
    costs = vanilla_per_video(case)
    whole, low, _ = ratio_total(costs, [1] * len(costs), len(costs), case.survey.videos, TWO_SIDED_99)
    return whole - low <= WIDE * whole


def _shares(case: Case) -> list[int]:
    """Each surveyed video's share of the budget."""
    return [_share(case, *each) for each in zip(case.survey.seen, vanilla_per_video(case), strict=True)]


def _share(case: Case, one: Seen, vanilla: int) -> int:
    whole = limit(case.budget.kind, case.budget.amount, vanilla, one.video_ms)
    return whole // case.survey.videos if case.budget.kind in FOR_THE_WHOLE_JOB else whole


def _below_floor(case: Case) -> str:
    kind, amount = case.budget.kind, case.budget.amount
    floor = _floor(case, case.pricer)
    told = ["no ratio is enough"] if kind == "ratio" and floor > 1 else [f"give at least {_up(floor)}"]
    told += [f"{change} has a floor of {_up(other)}" for change, other in _lower_floors(case) if other < floor]
    scope = f"scope {case.budget.scope}, {case.budget.convention} convention"
    return (
        f"budget.{kind}: {amount:g} is below the floor of this job, {_up(floor)} ({scope}); {'; '.join(told)}; "
        "or choose another prune.method"
    )


def _floor(case: Case, pricer: Pricer, clips: Counter[ClipShape] | None = None) -> float:
    """The least budget, of the kind that was given, that this job could have."""
    clips = case.clips if clips is None else clips
    low = case.scaled(pricer.job(fewer(clips, ladder(case)[-1]), 0))
    return amount_of(case.budget.kind, low, case.scaled(pricer.vanilla(clips)), case.scaled(case.video_ms))


def _lower_floors(case: Case) -> Iterator[tuple[str, float]]:
    """What could lower the floor, with the floor that it gives."""
    shared = shared_selection(case.pricer)
    if shared and any(len(clip.suffixes) > 1 for clip in case.clips):
        yield "prune.select: per_video", _floor(case, shared)
    if case.budget.scope == "total":
        measure = replace(case.pricer.measure, scope="llm")
        inner = replace(case, budget=case.budget.model_copy(update={"scope": "llm"}))
        yield "scope: llm", _floor(inner, replace(case.pricer, measure=measure))
    if case.frames > 1:
        half = case.frames // 2
        yield f"frames.count: {half}", _floor(replace(case, frames=half), case.pricer, fewer(case.clips, half))


def shared_selection(pricer: Pricer) -> Pricer | None:
    """The same job with one selection for all prompts of a clip, where that is another job."""
    method = pricer.method
    if not isinstance(method, Pruning) or method.select != "per_prompt":
        return None
    return replace(pricer, method=replace(method, select="per_video"))


def _up(amount: float) -> str:
    """Four digits, never below the number: what the user reads has to fit."""
    digits = f"{amount:.4g}"
    return digits if float(digits) >= amount else f"{amount * 1.0005:.4g}"
