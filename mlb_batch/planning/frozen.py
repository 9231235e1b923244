"""The solved schedule, frozen under OUTPUT/plans/ by the budget as written: later runs with more videos reuse it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from mlb_batch.cost.allocate import ContentRule
from mlb_batch.errors import OutputError
from mlb_batch.ledger.seal import BrokenSeal, sealed_json, unsealed_json
from mlb_batch.planning.record import Plan
from mlb_batch.spec import JobSpec
from mlb_batch.storage import open_store


@dataclass(frozen=True)
class Solved:
    """All that solving a budget yields."""

    keep: int
    frames: int
    content: ContentRule | None = None


def freeze(spec: JobSpec, plan: Plan) -> None:
    """Keep the plan's solved schedule for later runs of the same job. `run` calls this once it holds the output. What
    was solved for nothing is no schedule for what comes later.
    """
    if plan.reused or not plan.clips or not plan.settled:
        return
    solved = {"keep": plan.keep, "frames": plan.frames, "content": plan.content and dataclasses.asdict(plan.content)}
    told = {"fingerprint": plan.fingerprint, "videos": plan.videos, "budget": dataclasses.asdict(plan.budget)}
    open_store(spec.output.uri).replace(_name(plan.key), sealed_json({"solved": solved, "solved_for": told}))


def thaw(spec: JobSpec, key: str) -> Solved | None:
    """The schedule that an earlier run of this job froze."""
    try:
        data = open_store(spec.output.uri).read(_name(key))
    except FileNotFoundError:
        return None
    try:
        solved = unsealed_json(data)["solved"]
        return Solved(solved["keep"], solved["frames"], solved["content"] and ContentRule(**solved["content"]))
    except (BrokenSeal, KeyError, TypeError) as error:
        where = f"{spec.output.uri}/{_name(key)}"
        raise OutputError(f"{where} is damaged ({error}); delete it, or solve again with --replan") from error


def _name(key: str) -> str:
    return f"plans/{key}.json"
