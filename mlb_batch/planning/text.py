"""The plan for people: one plain table."""

from __future__ import annotations

from mlb_batch.planning.record import Plan


def describe(plan: Plan) -> str:
    raise NotImplementedError
