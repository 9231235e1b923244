"""The runs behind the rows: what each one did, and how fast the newest went."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from mlb_batch.ledger.runs import RunFolder, newest_first
from mlb_batch.storage import open_store

MOST_RUNS = 30
MOST_STEPS = 120
Commits = Sequence[tuple[str, float, int]]


@dataclass(frozen=True)
class Run:
    """A run; its documents are {} where it wrote none."""

    run_id: str
    plan: dict[str, Any]
    summary: dict[str, Any]
    progress: dict[str, Any]
    environment: dict[str, Any]

    @property
    def begun_s(self) -> float | None:
        """Run ids begin with their time."""
        try:
            begun = datetime.datetime.strptime(self.run_id.partition("-")[0], "%Y%m%dT%H%M%SZ")
        except ValueError:
            return None
        return begun.replace(tzinfo=datetime.UTC).timestamp()


@dataclass(frozen=True)
class Spending:
    """What one run paid of its own budget. The rows of many nights came out of as many purses, each for its input."""

    run_id: str
    paid: int
    budget: dict[str, Any]  # of its plan


@dataclass(frozen=True)
class Step:
    """From one commit to the next."""

    until_s: float  # since the run began
    per_minute: float


def newest_runs(output_uri: str, fingerprint: str) -> list[Run]:
    """Of this fingerprint, the newest first."""
    every = newest_first(open_store(output_uri), "summary", "plan")
    ours = (run_id for run_id, told in every if told.get("fingerprint") == fingerprint)
    return [_read(output_uri, run_id) for run_id in islice(ours, MOST_RUNS)]


def _read(output_uri: str, run_id: str) -> Run:
    folder = RunFolder(output_uri, run_id)
    return Run(
        run_id,
        folder.read_json("plan") or {},
        folder.read_json("summary") or {},
        folder.read_json("progress") or {},
        folder.read_json("environment") or {},
    )


def newest_spending(runs: Sequence[Run]) -> Spending | None:
    """Of the newest run that paid for anything; None where the budget is time, which is in no row."""
    for run in runs:
        paid, budget = (run.summary or run.progress).get("flops_spent_of_budget"), run.plan.get("budget")
        if paid and budget and budget["limit"]:
            return Spending(run.run_id, paid, budget)
    return None


def throughput(run: Run, commits: Commits) -> list[Step]:
    """Annotations a minute between the run's commits."""
    ours = sorted((at_s, rows) for run_id, at_s, rows in commits if run_id == run.run_id)
    if not ours:
        return []
    before_s = begun_s = run.begun_s if run.begun_s is not None else ours[0][0] - 1.0
    least_s = max(1.0, (ours[-1][0] - begun_s) / MOST_STEPS)
    steps, waiting = [], 0
    for number, (at_s, rows) in enumerate(ours):
        waiting += rows
        last = number == len(ours) - 1
        if at_s - before_s >= least_s or last:
            steps.append(Step(at_s - begun_s, 60 * waiting / max(at_s - before_s, 1.0)))
            before_s, waiting = at_s, 0
    return steps
