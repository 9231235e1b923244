"""The solved schedule, frozen under OUTPUT/plans/ by the budget as written: later runs with more videos reuse it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from mlb_batch.cost.allocate import ContentRule
from mlb_batch.errors import OutputError
from mlb_batch.ledger.runs import every_sound, has_schedule
from mlb_batch.ledger.seal import BrokenSeal, sealed_json, unsealed_json
from mlb_batch.planning.record import Plan, Solved
from mlb_batch.spec import JobSpec
from mlb_batch.storage import Store, open_store


def freeze(spec: JobSpec, plan: Plan) -> None:
    """Keep the plan's solved schedule for later runs of the same job. `run` calls this once it holds the output. What
    was solved for nothing is no schedule for what comes later.
    """
    if not plan.clips or not plan.settled:
        return
    store, name = open_store(spec.output.uri), _name(plan.key)
    told = {"fingerprint": plan.fingerprint, "videos": plan.videos, "budget": dataclasses.asdict(plan.budget)}
    data = sealed_json({"solved": dataclasses.asdict(plan.solved), "solved_for": told})
    if plan.reused:
        store.create(name, data)  # where someone deleted it
    else:
        store.replace(name, data)


def thaw(spec: JobSpec, key: str) -> Solved | None:
    """The schedule that an earlier run of this job froze."""
    store = open_store(spec.output.uri)
    try:
        data = store.read(_name(key))
    except FileNotFoundError:
        return _recorded(store, key)
    try:
        return _solved(unsealed_json(data)["solved"])
    except (BrokenSeal, KeyError, TypeError) as error:
        where = f"{spec.output.uri}/{_name(key)}"
        raise OutputError(f"{where} is damaged ({error}); delete it, or solve again with --replan") from error


def _recorded(store: Store, key: str) -> Solved | None:
    """What the newest run of this job followed: solved again for other videos, all would be annotated anew."""
    plans = reversed(every_sound(store, "plan"))
    return next((_solved(plan) for plan in plans if plan.get("key") == key and has_schedule(plan)), None)


def _solved(told: Mapping[str, Any]) -> Solved:
    return Solved(told["keep"], told["frames"], told["content"] and ContentRule(**told["content"]))


def _name(key: str) -> str:
    return f"plans/{key}.json"
