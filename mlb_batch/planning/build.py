"""plan(): from a job to its price and its keep."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from itertools import cycle, islice
from typing import Any

from mlb_batch.cost.allocate import ContentRule, Redundant, floor_keep, solve_all, solve_sample
from mlb_batch.cost.budget import MS_PER_HOUR, Measure
from mlb_batch.cost.budget import limit as budget_limit
from mlb_batch.cost.calibration import NANO, Calibration, load
from mlb_batch.cost.estimate import TWO_SIDED_99, ratio_total
from mlb_batch.cost.flops import Bill, trunk_lengths
from mlb_batch.cost.schedule import ClipShape, Schedule
from mlb_batch.cost.solve import Pricer
from mlb_batch.errors import BudgetError, RowError
from mlb_batch.planning.advice import Findings, advice
from mlb_batch.planning.frozen import Solved, thaw
from mlb_batch.planning.identity import fingerprint_of, key_of
from mlb_batch.planning.record import Budget, Estimate, Layer, Plan
from mlb_batch.planning.setup import Setup, method_of, pinned, setup
from mlb_batch.planning.solving import Case, fewer, per_video, solve, telling, vanilla_per_video
from mlb_batch.planning.survey import Layout, Survey, survey
from mlb_batch.planning.tally import ScheduleOf, nanoseconds, tally
from mlb_batch.source import Inspection, Prompt, videos
from mlb_batch.spec import JobSpec
from mlb_batch.vlm.preprocess import frame_recipe, paired_recipe
from mlb_batch.vlm.prompts import Prompter
from mlb_batch.vlm.small_files import refuse_window, tokenizer_of

# Of one row in a committed file of 256: measured on captions of random words with an English-like frequency.
ROW_BYTES, TOKEN_BYTES, FRAME_BYTES = 220, 3, 3
ENOUGH = 30  # measured videos: what fewer say of the others has no interval to rely on


def plan(spec: JobSpec, replan: bool = False, inspection: Inspection | None = None) -> Plan:
    """Price the job and solve its budget; a schedule that an earlier run froze is used again unless `replan`."""
    means = setup(spec)
    refuse_window(means.checkpoint)
    device = load(means.checkpoint.revision, spec.model.device, spec.model.dtype)
    prompter = Prompter(means.checkpoint)
    _refuse_without_room(means, prompter)
    if means.pair:  # its small files: what is wrong with them is said before any captioner starts
        paired_recipe(means.pair)
        tokenizer_of(means.pair)
    case = _case(spec, means, _pricer(spec, means, device), prompter, inspection)
    key = key_of(spec, means)
    frozen = None if replan else thaw(spec, key)
    return _assembled(spec, means, case, device, key, frozen or solve(case), reused=frozen is not None)


def _refuse_without_room(means: Setup, prompter: Prompter) -> None:
    """Where not even a word could be asked. A longer prompt without room is its own row's error."""
    try:
        prompter.asked(means.method, "qa", "a")
    except RowError:
        raise BudgetError(
            "generate.max_new_tokens, prune.options.room: the larger one leaves no room in the model's context for a "
            "prompt and a frame; ask for shorter answers, or keep less free for them"
        ) from None


def settle(spec: JobSpec, priced: Plan, measured: Sequence[Sequence[Redundant]]) -> Plan:
    """The plan with allocation `content` solved, once it is known how much the clips of some videos, or of all, repeat
    themselves; as it is where that of none is.

    Clips that could not be measured (not uploaded yet, say) may come under this schedule later, so what was measured is
    a sample of all. Few are filled up with clips that never repeat themselves, the dearest that there can be, where the
    missing ones could be opened. To count every missing one as that would leave most of the budget unspent for good,
    after one night of many; should they be dearer than the sample says, the purse holds the limit.
    """
    if not measured:
        return priced
    means = planned_with(spec, priced)
    pricer, budget = pricer_of(spec, means), priced.budget
    clips = [clip for video in measured for clip in video]
    if len(clips) >= priced.clips:
        rule = solve_all(pricer, clips, budget.limit, priced.keep)
    else:
        missing = max(0, min(ENOUGH, priced.videos - priced.unreadable) - len(measured))
        unlike = ([(clip, 0.0) for clip, _ in video] for video in islice(cycle(measured), missing))
        sample = [*measured, *unlike]
        rule = solve_sample(pricer, sample, priced.videos, budget.planned, budget.limit, priced.keep)
    return with_content(spec, means, priced, rule)


def planned_with(spec: JobSpec, priced: Plan) -> Setup:
    method = method_of(spec, paired=priced.pair_revision is not None)
    return pinned(spec, priced.revision, priced.pair_revision, method)


def with_content(spec: JobSpec, means: Setup, priced: Plan, rule: ContentRule) -> Plan:
    solved = Solved(priced.keep, priced.frames, rule)
    return dataclasses.replace(priced, content=rule, fingerprint=fingerprint_of(spec, means, solved))


def pricer_of(spec: JobSpec, means: Setup) -> Pricer:
    """What prices a clip in the budget's own measure."""
    return _pricer(spec, means, load(means.checkpoint.revision, spec.model.device, spec.model.dtype))


def _pricer(spec: JobSpec, means: Setup, device: Calibration | None) -> Pricer:
    budget = spec.budget
    timed = device if budget.kind == "gpu_hours" else None
    if budget.kind == "gpu_hours" and timed is None:
        where = "" if spec.model.device == "auto" else f" on {spec.model.device}"
        raise BudgetError(
            f"budget.gpu_hours: {means.checkpoint.name} was never calibrated{where}; run `mlb-batch bench calibrate "
            "--job JOB.yaml` on what will run it, or give a ratio or pflops"
        )
    measure = Measure(budget.scope, budget.convention, spec.generate.max_new_tokens, timed)
    return Pricer(means.shape, means.method, measure, means.pair_shape)


def _case(spec: JobSpec, means: Setup, pricer: Pricer, prompter: Prompter, inspection: Inspection | None) -> Case:
    def length(prompt: Prompt) -> int:
        return len(prompter.asked(means.method, prompt.kind, prompt.text, prompt.choices))

    layout = Layout(spec.frames, spec.clips, means.shape.side, len(prompter.prefix), means.shape.trailer)

    def case(found: Survey) -> Case:
        return Case(spec.budget, pricer, found, spec.frames.count)

    found = survey(videos(spec, inspection), layout, length, lambda sample: telling(case(sample)))
    # A ratio is of what is answered: at the sampling's full count, broken videos would let all others keep more.
    return case(found.without_unreadable() if spec.budget.kind == "ratio" else found)


def _assembled(
    spec: JobSpec, means: Setup, case: Case, device: Calibration | None, key: str, solved: Solved, reused: bool
) -> Plan:
    clips, recipe = fewer(case.clips, solved.frames), frame_recipe(means.checkpoint)
    priced = Plan(
        fingerprint=fingerprint_of(spec, means, solved),
        key=key,
        reused=reused,
        model=means.checkpoint.name,
        revision=means.checkpoint.revision,
        method=spec.prune.method,
        select=spec.prune.select,
        keep=solved.keep,
        content=solved.content,
        frames=solved.frames,
        frame_resize=recipe.resize,
        frame_crop=recipe.crop,
        frame_resample=recipe.resample,
        budget=_budget(case, clips, solved.keep),
        expected_new_tokens=spec.generate.planned_new_tokens,
        layers=_layers(case.pricer, clips, solved.keep),
        estimate=None if case.survey.complete else _estimate(case, solved),
        **_sizes(spec, case, clips),
        **_costs(spec, case, clips, solved.keep),
        **_times(spec, case, clips, solved.keep, device),
        warnings=(),
        pair_revision=means.pair.revision if means.pair else None,
    )
    return dataclasses.replace(priced, warnings=advice(priced, Findings(spec, means, case, clips)))


def _sizes(spec: JobSpec, case: Case, clips: Counter[ClipShape]) -> dict[str, Any]:
    found, scaled = case.survey, case.scaled
    prompts = scaled(sum(one.asked for one in found.seen)) + found.problems
    frames = max((clip.frames for clip in clips), default=0)
    return {
        "videos": found.videos,
        "unreadable": scaled(sum(not one.readable for one in found.seen)),
        "problems": found.problems,
        "hours": scaled(case.video_ms) / MS_PER_HOUR,
        "clips": scaled(clips.total()),
        "prompts": prompts,
        "visual_tokens": scaled(sum(count * clip.visual for clip, count in clips.items())),
        "text_tokens": scaled(sum(count * _text_tokens(clip) for clip, count in clips.items())),
        "bytes_read": scaled(sum(one.num_bytes for one in found.seen)),
        "bytes_written": prompts * (ROW_BYTES + TOKEN_BYTES * spec.generate.planned_new_tokens + FRAME_BYTES * frames),
    }


def _schedules(case: Case, keep: int) -> tuple[ScheduleOf, ScheduleOf]:
    """Of a clip as planned, and unpruned."""
    pricer = case.pricer
    return lambda clip: pricer.method.schedule(pricer.shape, clip, keep), lambda clip: Schedule(clip.frames)


def _costs(spec: JobSpec, case: Case, clips: Counter[ClipShape], keep: int) -> dict[str, Any]:
    pruned, whole = _schedules(case, keep)
    new = spec.generate.planned_new_tokens
    vanilla, planned = tally(case.pricer, case.clips, whole, new), tally(case.pricer, clips, pruned, new)
    worst = tally(case.pricer, clips, pruned, spec.generate.max_new_tokens)
    return {
        "vanilla": _scaled_bill(case, vanilla.bill),
        "planned": _scaled_bill(case, planned.bill),
        "planned_worst": _scaled_bill(case, worst.bill),
        "paper_vanilla": case.scaled(vanilla.macs),
        "paper_planned": case.scaled(planned.macs),
    }


def _times(
    spec: JobSpec, case: Case, clips: Counter[ClipShape], keep: int, device: Calibration | None
) -> dict[str, Any]:
    if device is None:
        return {"device": "", "gpu_hours": None, "gpu_hours_vanilla": None, "price": None}
    pruned, whole = _schedules(case, keep)
    new, rate = spec.generate.planned_new_tokens, spec.limits.price_per_gpu_hour
    planned, unpruned = (
        case.scaled(nanoseconds(case.pricer, some, schedule_of, new, device)) / NANO / 3600
        for some, schedule_of in ((clips, pruned), (case.clips, whole))
    )
    price = None if rate is None else rate * planned
    return {"device": device.device, "gpu_hours": planned, "gpu_hours_vanilla": unpruned, "price": price}


def _text_tokens(clip: ClipShape) -> int:
    """As the rows count them: every prompt with the text before the visual tokens, which is shared when it runs."""
    return len(clip.suffixes) * clip.prefix + sum(clip.suffixes)


def _scaled_bill(case: Case, bill: Bill) -> Bill:
    return Bill(*map(case.scaled, bill.parts))


def _budget(case: Case, clips: Counter[ClipShape], keep: int) -> Budget:
    spec, pricer = case.budget, case.pricer
    vanilla = case.scaled(pricer.vanilla(case.clips))
    return Budget(
        kind=spec.kind,
        amount=spec.amount,
        scope=spec.scope,
        convention=spec.convention,
        allocation=spec.allocation,
        unit=pricer.measure.unit,
        limit=budget_limit(spec.kind, spec.amount, vanilla, case.scaled(case.video_ms)),
        planned=case.scaled(pricer.job(clips, keep)),
        vanilla=vanilla,
        floor=case.scaled(pricer.job(clips, 0)),
        content_floor=case.scaled(pricer.job(clips, floor_keep(keep))) if spec.allocation == "content" else 0,
    )


def _layers(pricer: Pricer, clips: Counter[ClipShape], keep: int) -> tuple[Layer, ...]:
    """What each layer sees of the commonest clip (of the longest, among equals)."""
    if not clips:
        return ()
    clip = max(clips, key=lambda one: (clips[one], one.visual, one.suffixes))
    schedule = pricer.method.schedule(pricer.shape, clip, keep)
    prompts = len(clip.suffixes)
    if not schedule.scan:
        text, lengths = clip.text, trunk_lengths(pricer.shape, clip, schedule)
        return tuple(Layer(i, length - text, prompts if forked else 1) for i, (length, forked) in enumerate(lengths))
    first = schedule.scan.layers
    scanned, joined = sum(schedule.scan.segments) * clip.tokens_per_frame, sum(schedule.scan.kept)
    copies = prompts if schedule.fork else 1
    again = copies * joined if schedule.scan.refeed else 0
    return tuple(
        Layer(i, scanned + again, 1) if i < first else Layer(i, joined, copies)
        for i in range(pricer.shape.decoder.layers)
    )


def _estimate(case: Case, solved: Solved) -> Estimate:
    seen = case.survey.seen

    def interval(amounts: Sequence[int]) -> tuple[int, int]:
        ones = [1] * len(amounts)
        _, low, high = ratio_total(amounts, ones, case.survey.videos, case.survey.videos, TWO_SIDED_99)
        return max(0, int(low)), math.ceil(high)

    low_ms, high_ms = interval([one.video_ms for one in seen])
    return Estimate(
        sampled_videos=len(seen),
        confidence=0.99,
        hours=(low_ms / MS_PER_HOUR, high_ms / MS_PER_HOUR),
        clips=interval([len(one.clips) for one in seen]),
        vanilla=interval(vanilla_per_video(case)),
        planned=interval(per_video(case, solved.frames, solved.keep)),
    )
