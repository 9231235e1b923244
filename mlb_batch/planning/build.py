"""plan(): from a job to its price and its keep."""

from __future__ import annotations

from mlb_batch.planning.record import Plan
from mlb_batch.spec import JobSpec


def plan(spec: JobSpec, replan: bool = False) -> Plan:
    """Price the job and solve its budget; a schedule that an earlier run froze is used again unless `replan`."""
    raise NotImplementedError
