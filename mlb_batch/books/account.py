"""What arrived, what it cost, what everything waits for, and whether it adds up in the end."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mlb_batch.columns import BILL
from mlb_batch.errors import JobError
from mlb_batch.ledger import Attempt, pending
from mlb_batch.planning import Plan
from mlb_batch.spec_parts import RetrySpec
from mlb_batch.work import Counts, Outcome

BUSY_SHARE = 0.8  # captioners that work for less of their time are starved by reading
WRITING_SHARE = 0.5  # a driver that commits for more of its time keeps everything else waiting,
LEAST_S = 10.0  # where there was time enough to tell
STEPS = {"reading": "read_s", "model": "model_s", "writing": "write_s"}  # and where their seconds are


@dataclass
class Books:
    plan: Plan
    retry: RetrySpec
    gpus: float = 0.0  # that the captioners hold
    price_per_gpu_hour: float | None = None
    limit: int | None = None  # of the input's rows, where it leaves some out; and the share of their videos:
    share: float = 1.0  # what this run is asked for
    end: str | None = None  # why nothing more comes: "" where all that was asked for has passed
    counts: Counts = field(default_factory=Counts)
    annotated: int = 0
    errors_by_class: Counter[str] = field(default_factory=Counter)
    to_retry: int = 0  # failed in this run, and the next run of the same command will try them
    bill: Counter[str] = field(default_factory=Counter)
    without_result: int = 0  # operations of attempts that failed, which are in no row
    read_s: float = 0.0
    bytes_fetched: int = 0  # of videos, from storage; of local files, their size
    model_s: float = 0.0
    idle_s: float = 0.0
    write_s: float = 0.0
    measuring_s: float = 0.0  # of a pass before the job proper, whose captioners held as many GPUs
    begun_s: float = field(default_factory=time.monotonic)
    first_s: float | None = None  # when something had first arrived

    def measured(self) -> None:
        """The job proper begins, which has a rate of its own."""
        self.measuring_s, self.begun_s = self.wall_s, time.monotonic()

    def add(self, outcomes: Sequence[Outcome]) -> None:
        if self.first_s is None and outcomes:
            self.first_s = time.monotonic()
        for outcome in outcomes:
            self._add(outcome)

    def _add(self, outcome: Outcome) -> None:
        self.counts += outcome.counts
        self.annotated += len(outcome.annotations)
        for row in outcome.annotations:
            self.bill.update({name: row[name] for name in BILL})
        for row in outcome.errors:
            self.errors_by_class[row["error_class"]] += 1
            self.to_retry += pending(Attempt(row["attempt"], row["retryable"]), self._by_itself)
        self.without_result += outcome.flops_without_result
        self.read_s += outcome.read_s
        self.bytes_fetched += outcome.bytes_fetched
        self.model_s += outcome.model_s
        self.idle_s += outcome.idle_s

    def wrote(self, seconds: float) -> None:
        self.write_s += seconds

    @property
    def _by_itself(self) -> RetrySpec:
        """`retry.errors` is a wish for this run, not for the next."""
        return RetrySpec(attempts=self.retry.attempts)

    @property
    def failed(self) -> int:
        return self.errors_by_class.total()

    @property
    def unresolved(self) -> int:
        return self.failed + self.counts.skipped_failed

    @property
    def wall_s(self) -> float:
        return self.measuring_s + self._since_s

    @property
    def _since_s(self) -> float:
        return time.monotonic() - self.begun_s

    @property
    def finished(self) -> int:
        return self.counts.skipped_done + self.annotated + self.unresolved

    @property
    def asked(self) -> int | None:
        """By the plan, which may be an estimate; by what was met, where that is more, or all. None of a share: how many
        fall in it shows only when they pass.
        """
        if self.end == "":
            return self.counts.expected
        if self.share < 1:
            return None
        videos = self.plan.videos if self.limit is None else min(self.limit, self.plan.videos)
        return max(self.plan.prompts * videos // max(1, self.plan.videos), self.counts.expected)

    @property
    def left(self) -> int | None:
        return None if self.asked is None else max(0, self.asked - self.finished)

    @property
    def rate(self) -> float:
        """Annotations a second, attempts that failed included: what the time goes into."""
        return (self.annotated + self.failed) / max(self._since_s, 1e-9)

    @property
    def eta_s(self) -> float | None:
        if self.left is None or not self.rate or self.end is not None:
            return None
        return round(self.left / self.rate, 1)

    @property
    def starved_by(self) -> str:
        """What everything else waits for. While the driver writes, nothing arrives, and captioners idle for that."""
        since_s = time.monotonic() - self.first_s if self.first_s is not None else 0.0
        if self.write_s > WRITING_SHARE * max(since_s, LEAST_S):
            return "writing"
        return "model" if self.busy_share >= BUSY_SHARE else "reading"

    @property
    def gpu_hours(self) -> float:
        """Held by this run so far, at work or not: that is what is paid for. At most: a pool that may grow is counted
        as grown.
        """
        return self.gpus * self.wall_s / 3600

    @property
    def price(self) -> float | None:
        return None if self.price_per_gpu_hour is None else self.price_per_gpu_hour * self.gpu_hours

    @property
    def busy_share(self) -> float:
        """Of the captioners' time, once they were loaded."""
        return self.model_s / max(self.model_s + self.idle_s, 1e-9)

    @property
    def spent(self) -> int | None:
        """By this run, in the budget's own measure; None where that is time: a captioner's seconds hold more than it
        counts.
        """
        return self.plan.budget.spent(self.bill)

    @property
    def budget(self) -> int | None:
        """What `spent` may come to, over all runs."""
        return None if self.spent is None else self.plan.budget.limit

    def check(self, stopped: str) -> None:
        """Every expected annotation has an outcome; anything else is a fault of the run, not of a row."""
        if stopped:
            return
        if self.finished != self.counts.expected:
            raise JobError(
                f"{self.counts.expected} annotations were expected and {self.finished} have an outcome; "
                "what is committed stays, run the same command again"
            )

    def as_json(self) -> dict[str, Any]:
        wall_s = self.wall_s
        return {
            "expected": self.counts.expected,
            "annotated": self.annotated,
            "errors": self.unresolved,
            "errors_by_class": dict(self.errors_by_class),
            "skipped_done": self.counts.skipped_done,
            "skipped_failed": self.counts.skipped_failed,
            "to_retry": self.to_retry,
            "videos": self.counts.videos,
            "flops_budget": self.budget,
            "flops_spent_of_budget": self.spent,
            "budget_unit": self.plan.budget.unit,
            **{name: self.bill[name] for name in ("flops_planned", "flops_executed", "flops_vanilla")},
            "flops_without_result": self.without_result,
            "wall_s": round(wall_s, 3),
            "measuring_s": round(self.measuring_s, 3),
            "videos_per_s": round(self.counts.videos / wall_s, 4),
            "annotations_per_s": round(self.annotated / wall_s, 4),
            "read_s": round(self.read_s, 3),
            "bytes_fetched": self.bytes_fetched,
            "model_s": round(self.model_s, 3),
            "write_s": round(self.write_s, 3),
            "gpu_hours": round(self.gpu_hours, 6),
            "cost": None if self.price is None else round(self.price, 4),
            "gpu_busy_share": round(self.busy_share, 4),
            "starved_by": self.starved_by,
        }
