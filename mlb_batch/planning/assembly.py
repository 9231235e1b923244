"""assembled(): what was found and solved, counted and priced as a Plan."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from mlb_batch.cost.allocate import floor_keep
from mlb_batch.cost.budget import MS_PER_HOUR, limit
from mlb_batch.cost.calibration import NANO, Calibration
from mlb_batch.cost.estimate import TWO_SIDED_99, ratio_total
from mlb_batch.cost.flops import Bill, trunk_lengths
from mlb_batch.cost.schedule import ClipShape, Schedule
from mlb_batch.cost.solve import Pricer
from mlb_batch.planning.advice import Findings, advice
from mlb_batch.planning.identity import fingerprint_of
from mlb_batch.planning.record import Budget, Estimate, Layer, Plan, Solved
from mlb_batch.planning.solving import Case, per_video, vanilla_per_video
from mlb_batch.planning.tally import ScheduleOf, nanoseconds, tally
from mlb_batch.vlm.preprocess import frame_recipe

# Of one row in a committed file of 256: measured on captions of random words with an English-like frequency.
_ROW_BYTES, _TOKEN_BYTES, _FRAME_BYTES = 220, 3, 3


def assembled(found: Findings, device: Calibration | None, key: str, solved: Solved, reused: bool) -> Plan:
    spec, means, case, clips = found.spec, found.means, found.case, found.clips
    recipe = frame_recipe(means.checkpoint)
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
        budget=_budget(found, solved.keep),
        expected_new_tokens=spec.generate.planned_new_tokens,
        layers=_layers(case.pricer, clips, solved.keep),
        estimate=None if case.survey.complete else _estimate(case, solved),
        **_sizes(found),
        **_costs(found, solved.keep),
        **_times(found, solved.keep, device),
        warnings=(),
        pair_revision=means.pair.revision if means.pair else None,
    )
    return dataclasses.replace(priced, warnings=advice(priced, found))


def _sizes(found: Findings) -> dict[str, Any]:
    clips, survey, scaled = found.clips, found.case.survey, found.case.scaled
    prompts = scaled(sum(one.asked for one in survey.seen)) + survey.problems
    frames, new = max((clip.frames for clip in clips), default=0), found.spec.generate.planned_new_tokens
    return {
        "videos": survey.videos,
        "unreadable": scaled(sum(not one.readable for one in survey.seen)),
        "problems": survey.problems,
        "hours": scaled(found.case.video_ms) / MS_PER_HOUR,
        "clips": scaled(clips.total()),
        "prompts": prompts,
        "visual_tokens": scaled(sum(count * clip.visual for clip, count in clips.items())),
        "text_tokens": scaled(sum(count * _text_tokens(clip) for clip, count in clips.items())),
        "bytes_read": scaled(sum(one.num_bytes for one in survey.seen)),
        "bytes_written": prompts * (_ROW_BYTES + _TOKEN_BYTES * new + _FRAME_BYTES * frames),
    }


def _schedules(case: Case, keep: int) -> tuple[ScheduleOf, ScheduleOf]:
    """Of a clip as planned, and unpruned."""
    pricer = case.pricer
    return lambda clip: pricer.method.schedule(pricer.shape, clip, keep), lambda clip: Schedule(clip.frames)


def _costs(found: Findings, keep: int) -> dict[str, Any]:
    case, clips, generate = found.case, found.clips, found.spec.generate
    pruned, whole = _schedules(case, keep)
    new = generate.planned_new_tokens
    vanilla, planned = tally(case.pricer, case.clips, whole, new), tally(case.pricer, clips, pruned, new)
    worst = tally(case.pricer, clips, pruned, generate.max_new_tokens)
    return {
        "vanilla": _scaled_bill(case, vanilla.bill),
        "planned": _scaled_bill(case, planned.bill),
        "planned_worst": _scaled_bill(case, worst.bill),
        "paper_vanilla": case.scaled(vanilla.macs),
        "paper_planned": case.scaled(planned.macs),
    }


def _times(found: Findings, keep: int, device: Calibration | None) -> dict[str, Any]:
    if device is None:
        return {"device": "", "gpu_hours": None, "gpu_hours_vanilla": None, "price": None}
    spec, case = found.spec, found.case
    pruned, whole = _schedules(case, keep)
    new, rate = spec.generate.planned_new_tokens, spec.limits.price_per_gpu_hour
    planned, unpruned = (
        case.scaled(nanoseconds(case.pricer, some, schedule_of, new, device)) / NANO / 3600
        for some, schedule_of in ((found.clips, pruned), (case.clips, whole))
    )
    price = None if rate is None else rate * planned
    return {"device": device.device, "gpu_hours": planned, "gpu_hours_vanilla": unpruned, "price": price}


def _text_tokens(clip: ClipShape) -> int:
    """As the rows count them: every prompt with the text before the visual tokens, which is shared when it runs."""
    return len(clip.suffixes) * clip.prefix + sum(clip.suffixes)


def _scaled_bill(case: Case, bill: Bill) -> Bill:
    return Bill(*map(case.scaled, bill.parts))


def _budget(found: Findings, keep: int) -> Budget:
    case, clips = found.case, found.clips
    spec, pricer = case.budget, case.pricer
    vanilla = case.scaled(pricer.vanilla(case.clips))
    return Budget(
        kind=spec.kind,
        amount=spec.amount,
        scope=spec.scope,
        convention=spec.convention,
        allocation=spec.allocation,
        unit=pricer.measure.unit,
        limit=limit(spec.kind, spec.amount, vanilla, case.scaled(case.video_ms)),
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
