"""What the user should know before the job starts: each warning is one line with what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from mlb_batch import tiny
from mlb_batch.amounts import amount, count, hours, many, percent
from mlb_batch.cost.budget import MS_PER_HOUR
from mlb_batch.cost.calibration import NANO, fitting
from mlb_batch.cost.schedule import WHOLE, ClipShape
from mlb_batch.cost.solve import largest
from mlb_batch.planning.record import Plan
from mlb_batch.planning.setup import Setup
from mlb_batch.planning.solving import Case, shared_selection
from mlb_batch.planning.survey import MOST_MS
from mlb_batch.spec import JobSpec
from mlb_batch.vlm.small_files import not_applied

FLOOR_SHARE = Fraction(1, 2)  # of the budget, spent before the first visual token is kept; any whole number times it
OUTSIDE_SHARE = 0.5  # of the pruned job, in parts that pruning does not make cheaper
MUCH_BETTER = 1.25  # times the tokens that another choice would keep
MOST_OF_IT = 0.5  # of the hours, in one video
NEARLY_ALL = 0.9  # of the budget: where a sample's bound leaves more of it unspent, the plan says so
TIME_GAP = 1.5  # how much more of vanilla's time than of its FLOPs a plan takes


@dataclass(frozen=True)
class Findings:
    """What a plan was made from."""

    spec: JobSpec
    means: Setup
    case: Case
    clips: Counter[ClipShape]


def advice(plan: Plan, found: Findings) -> tuple[str, ...]:
    checks = (_source, _model, _frames, _sharing, _budget, _canary, _time, _context)
    return tuple(line for check in checks for line in check(plan, found))


def _source(plan: Plan, found: Findings) -> Iterator[str]:
    seen = found.case.survey.seen
    if plan.unreadable:
        priced = any(one.clips for one in seen if not one.readable)
        how = f"priced at {found.spec.frames.count} frames" if priced else "left out of the ratio"
        yield (
            f"the headers of {many(plan.unreadable, 'video')} could not be read ({how}); what can't be read at all "
            "will end in errors/"
        )
    if found.spec.budget.kind == "pflops_per_hour_of_video":
        yield from _lengths(found)
    if found.spec.clips and (untimed := _untimed(found)):
        yield f"{many(untimed, 'video')} without a length in the header: planned as one clip each, and cut when read"
    askable = sum(len(clip.suffixes) for one in seen if one.readable for clip in one.clips)
    if unaskable := found.case.scaled(sum(one.asked for one in seen if one.readable) - askable):
        yield f"{many(unaskable, 'prompt')} can't be asked of this model (empty, or too long), and will end in errors/"
    if plan.problems:
        said = "can't be made, as the input itself shows, and will end in errors/"
        yield f"{many(plan.problems, 'annotation')} {said}"
    if plan.estimate:
        yield (
            f"{count(plan.estimate.sampled_videos)} of {count(plan.videos)} videos were probed: the numbers are "
            "estimates; each clip's own plan is made from the frames that are read"
        )
    if found.spec.frames.strategy == "keyframes":
        yield "headers don't say how many keyframes there are: the plan takes the sampling's full count"


def _lengths(found: Findings) -> Iterator[str]:
    """What the hours rest on that are paid for."""
    seen, whole = found.case.survey.seen, found.case.video_ms
    if untimed := _untimed(found):
        yield f"{many(untimed, 'video')} without a length in the header: nothing is added to a budget by the hour"
    if endless := found.case.scaled(sum(one.video_ms == MOST_MS for one in seen)):
        yield f"{many(endless, 'video')} of a day or more, by the header: a day each is added to a budget by the hour"
    longest = max((one.video_ms for one in seen), default=0)
    if len(seen) > 1 and longest > MOST_OF_IT * whole:
        yield (
            f"one video is {percent(longest / whole)} of the hours that this budget is for, by what its header claims: "
            f"where it does not last {hours(longest / MS_PER_HOUR)}, leave it out"
        )


def _untimed(found: Findings) -> int:
    return found.case.scaled(sum(one.readable and not one.timed for one in found.case.survey.seen))


def _model(plan: Plan, found: Findings) -> Iterator[str]:
    name = plan.model.removeprefix("embedded:")
    if plan.model.startswith("embedded:") and not tiny.trained(name):
        yield f"{plan.model} has random weights here: its answers are noise, good for trying the machinery only"
    if ignored := ", ".join(not_applied(found.means.checkpoint, found.spec.generate.temperature)):
        yield f"{plan.model}: its generation_config.json asks for what is not applied here ({ignored})"


def _frames(plan: Plan, found: Findings) -> Iterator[str]:
    asked = found.spec.frames.count
    if plan.frames < asked:
        yield (
            f"the budget is below what {asked} frames cost before the first token is kept: {plan.frames} frames are "
            f"read and encoded (the most of {asked} x 1, 3/4, 1/2, 3/8, ... at which a tenth of their tokens fits)"
        )


def _sharing(plan: Plan, found: Findings) -> Iterator[str]:
    """Query-aware cuts leave little to share between the prompts of a clip."""
    several = any(len(clip.suffixes) > 1 for clip in found.clips)
    shared = shared_selection(found.case.pricer)
    if not several or not shared or plan.planned.llm == 0:
        return
    if plan.planned.llm > plan.vanilla.llm or (plan.planned.llm == plan.vanilla.llm and plan.keep < WHOLE):
        yield (
            f"pruning for each prompt costs {percent(plan.planned.llm / plan.vanilla.llm)} of one unpruned prefill "
            "that the prompts of a clip share; set prune.select=per_video, or prune.method=none with ratio 1"
        )
    low, allowed = shared.job(found.clips, 0), found.case.limit(found.case.pricer.vanilla(found.case.clips))
    if low > allowed:
        return
    better = largest(lambda at: shared.job(found.clips, at), allowed, low).at
    if better > plan.keep * MUCH_BETTER:
        yield (
            f"with several prompts on a clip, prune.select=per_video would keep {percent(better / WHOLE)} of the "
            f"visual tokens on the same budget, instead of {percent(plan.keep / WHOLE)}"
        )


def _budget(plan: Plan, found: Findings) -> Iterator[str]:
    budget = plan.budget
    if budget.over:
        yield budget.over
    elif plan.method != "none" and budget.floor > FLOOR_SHARE * budget.limit:
        yield (
            f"{percent(budget.floor / budget.limit)} of the budget is spent before the first visual token is kept: "
            "fewer frames, or a cheaper method, leave more for tokens"
        )
    if plan.estimate and budget.planned <= budget.floor and plan.estimate.planned[1] > budget.limit:
        yield (
            f"the budget is the floor of the videos that were probed; all of them may cost up to "
            f"{percent(plan.estimate.planned[1] / budget.limit)} of it, and nothing can be left out: give more"
        )
    if plan.estimate and not plan.reused and budget.use < NEARLY_ALL and _bound(plan, found):
        yield (
            f"{percent(budget.use)} of the budget is planned to be spent: the videos are so unlike that no more keeps "
            "all of them within it with 99 % confidence, by those that were probed; give more, or plan fewer at a time"
        )
    if not found.means.method.traits.exact:
        yield "spend: cap may stay below the budget on clips that repeat themselves; the report says by how much"
    if budget.allocation == "content" and plan.content is None:
        yield "allocation content: the keep shown is the one that `equal` gives; the run solves each clip's own first"
    if budget.kind == "gpu_hours":
        yield from _hours(plan, found)


def _bound(plan: Plan, found: Findings) -> bool:
    """Whether the sample itself would afford more: its upper bound does not."""
    case = found.case
    allowed, low = case.limit(case.pricer.vanilla(case.clips)), case.pricer.job(found.clips, 0)
    return low <= allowed and largest(lambda at: case.pricer.job(found.clips, at), allowed, low).at > plan.keep


def _hours(plan: Plan, found: Findings) -> Iterator[str]:
    budget, model = plan.budget, found.spec.model
    others = {one.device for one in fitting(found.means.checkpoint.revision, model.device, model.dtype)} - {plan.device}
    if others:
        yield (
            f"the hours are those of {plan.device}, calibrated last; {', '.join(sorted(others))} would fit too: set "
            "model.device, or calibrate again on the device that will run it"
        )
    if budget.scope == "llm" and plan.gpu_hours and plan.gpu_hours > budget.limit / NANO / 3600:
        whole = hours(plan.gpu_hours)
        yield f"the budget counts the language model's prefill alone; the job takes {whole} in all (see scope: total)"
    if budget.convention == "paper":
        yield "a budget in gpu_hours is measured time: convention paper has no bearing on it"


def _canary(plan: Plan, found: Findings) -> Iterator[str]:
    share, rivals = found.spec.canary.share, found.spec.canary_rivals
    if share > 0 and rivals:
        each = (plan.vanilla.total if name == "none" else plan.planned.total for name in rivals)
        more = round(share * sum(each))
        yield f"canary: its runs against {', '.join(rivals)} add about {amount(more, 'FLOPs')} to the budget's"


def _time(plan: Plan, found: Findings) -> Iterator[str]:
    """Fewer operations that are not faster is a finding to show."""
    spent, whole = plan.planned.total, plan.vanilla.total
    if plan.keep == WHOLE or not spent:
        return
    if plan.gpu_hours is not None and plan.gpu_hours_vanilla:
        share_of_time = plan.gpu_hours / plan.gpu_hours_vanilla
        if share_of_time > TIME_GAP * spent / whole:
            yield (
                f"{percent(spent / whole)} of vanilla's FLOPs, but {percent(share_of_time)} of its time on "
                f"{plan.device}: generation is bound by memory, which pruning hardly touches"
            )
    outside = plan.planned.vision + plan.planned.generate
    if outside > OUTSIDE_SHARE * spent:
        yield (
            f"{percent(outside / spent)} of the pruned job is vision and generation, which the keep hardly changes: "
            "frames.count and generate.max_new_tokens do"
        )


def _context(plan: Plan, found: Findings) -> Iterator[str]:
    room = found.means.shape.decoder.context
    longest = max((clip.longest_text + clip.visual for clip in found.case.clips), default=0)
    if longest > room:
        yield (
            f"unpruned, the longest clip has {count(longest)} tokens and the model's context {count(room)}: vanilla is "
            "the arithmetic of a run that could not have been made"
        )
    method = found.means.method
    if any(method.traits.bounded(found.means.shape, clip, plan.keep) for clip in found.clips):
        yield (
            f"the model's context of {count(room)}, and not the budget, says how many tokens of the longest clips are "
            "handed on: shorter answers leave room for more, fewer frames lose none"
        )
    farthest = max((_positions(plan, found, clip) for clip in found.clips), default=0)
    if farthest > room:
        yield (
            f"this job's own answers are made at up to {count(farthest)} positions, beyond the {count(room)} of the "
            "model's context, and are not to be trusted; take fewer frames, or prune.method mlb"
        )


def _positions(plan: Plan, found: Findings, clip: ClipShape) -> int:
    """The longest sequence of a clip, as RoPE counts it; none where two stages join it within what RoPE can scale."""
    shape, method = found.means.shape, found.means.method
    schedule = method.schedule(shape, clip, plan.keep)
    answer = found.spec.generate.max_new_tokens
    return 0 if schedule.scan else clip.longest_text + method.positions(schedule, clip) + answer
