"""The solved schedule, frozen under OUTPUT/plans/ by the budget as written: later runs with more videos reuse it."""

from __future__ import annotations

from mlb_batch.planning.record import Plan
from mlb_batch.spec import JobSpec


def freeze(spec: JobSpec, plan: Plan) -> None:
    """Keep the plan's solved schedule for later runs of the same job. `run` calls this once it holds the output."""
    raise NotImplementedError
