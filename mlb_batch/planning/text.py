"""The plan for people: one plain table."""

from __future__ import annotations

from collections.abc import Iterator

from mlb_batch.amounts import amount, count, hours, percent
from mlb_batch.cost.flops import Bill
from mlb_batch.cost.schedule import WHOLE
from mlb_batch.planning.record import Layer, Plan

Line = tuple[str, str]
LEAST_PRICE = 0.01


def describe(plan: Plan) -> str:
    lines = [*_job(plan), *_cost(plan), *_spending(plan), *_schedule(plan)]
    width = max(len(name) for name, _ in lines)
    table = [f"{name:<{width}}  {value}" for name, value in lines]
    return "\n".join([*table, *(f"warning: {line}" for line in plan.warnings)])


def _job(plan: Plan) -> Iterator[Line]:
    about = "about " if plan.estimate else ""
    yield "videos", f"{count(plan.videos)}, {about}{hours(plan.hours)}"
    yield "clips", f"{about}{count(plan.clips)} of at most {plan.frames} frames"
    yield "annotations", f"{about}{count(plan.prompts)}"
    yield "tokens", f"{about}{count(plan.visual_tokens)} visual, {count(plan.text_tokens)} text"
    yield "model", f"{plan.model} ({plan.revision[:12]})"
    if plan.estimate:
        low, high = plan.estimate.hours
        few, many = plan.estimate.clips
        trust = percent(plan.estimate.confidence)
        yield "interval", f"{trust}: {hours(low)} to {hours(high)}, {count(few)} to {count(many)} clips"


def _cost(plan: Plan) -> Iterator[Line]:
    budget = plan.budget
    what = f"scope {budget.scope}, {budget.convention} convention"
    yield "vanilla", f"{amount(budget.vanilla, budget.unit)} ({what})"
    yield "budget", f"{budget.kind} {budget.amount:g} = {amount(budget.limit, budget.unit)}"
    yield "floor", amount(budget.floor, budget.unit)
    yield "planned", f"{amount(budget.planned, budget.unit)}, {percent(budget.use)} of the budget"
    if plan.estimate:
        low, high = plan.estimate.planned
        yield "", f"{percent(plan.estimate.confidence)}: {amount(low, budget.unit)} to {amount(high, budget.unit)}"
    yield "all of it", f"{_parts(plan.planned)} ({plan.expected_new_tokens} new tokens a prompt)"
    yield "unpruned", _parts(plan.vanilla)
    yield "most", f"{amount(plan.planned_worst.total, 'FLOPs')} where every answer takes all its tokens"
    yield "papers", f"{amount(plan.paper_planned, 'multiply-adds')} of {amount(plan.paper_vanilla, 'multiply-adds')}"


def _spending(plan: Plan) -> Iterator[Line]:
    if plan.gpu_hours is None:
        yield "time", "unknown: this model was not calibrated here; run `mlb-batch bench calibrate --job JOB.yaml`"
    else:
        price = "" if plan.price is None else f", costing {_price(plan.price)}"
        unpruned = f" ({hours(plan.gpu_hours_vanilla)} unpruned)" if plan.gpu_hours_vanilla else ""
        yield "time", f"{hours(plan.gpu_hours)} of {plan.device}{unpruned}{price}"
    yield "read", f"{amount(plan.bytes_read, 'B')}, written about {amount(plan.bytes_written, 'B')}"


def _price(money: float) -> str:
    return f"{money:,.2f}" if money >= LEAST_PRICE or not money else f"less than {LEAST_PRICE}"


def _schedule(plan: Plan) -> Iterator[Line]:
    reused = ", frozen by an earlier run" if plan.reused else ""
    yield "method", f"{plan.method}, {plan.select}"
    yield "keep", f"{percent(plan.keep / WHOLE)} of the visual tokens{reused}"
    for first, last, layer in _runs(plan.layers):
        name = f"layer {first}" if first == last else f"layers {first}-{last}"
        yield name, f"{count(layer.visual)} visual tokens" + (f" x {layer.copies} prompts" if layer.copies > 1 else "")


def _runs(layers: tuple[Layer, ...]) -> Iterator[tuple[int, int, Layer]]:
    """Neighbouring layers that see the same, as one."""
    start = 0
    for i, layer in enumerate(layers):
        following = layers[i + 1] if i + 1 < len(layers) else None
        if following is None or (following.visual, following.copies) != (layer.visual, layer.copies):
            yield layers[start].index, layer.index, layer
            start = i + 1


def _parts(bill: Bill) -> str:
    named = zip(("vision", "prefill", "scoring", "generation"), bill.parts, strict=True)
    return ", ".join(f"{name} {amount(part, 'FLOPs')}" for name, part in named)
