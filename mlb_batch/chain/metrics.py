"""The run's books as Prometheus metrics, through Ray's own exporter: scrape the cluster as for any Ray metric.

Ray writes `ray_` before every name and adds labels of its own (WorkerId, SessionName, ...). All are gauges that the
driver sets from its books once a tick, so nothing is counted twice and a restarted driver starts from zero; `rate()`
works on those that only grow. Labels of ours: `job_name` (the spec's name; Prometheus keeps `job` for itself) and
`run_id` on every one, and those in braces.

ray_mlb_batch_annotations{outcome}     annotations by outcome: done (by this run), failed (by this run), skipped_done
                                       (by earlier runs), skipped_failed (given up by earlier runs); only grows
ray_mlb_batch_errors{error_class}      failed attempts of this run by class (the classes of errors/); only grows
ray_mlb_batch_expected                 annotations met in the input so far; only grows
ray_mlb_batch_left                     annotations still to come, by the plan; absent of a share (a canary's passes)
ray_mlb_batch_videos                   videos met in the input so far; only grows
ray_mlb_batch_outcomes_per_s           outcomes a second, over the whole run but the measuring before it
ray_mlb_batch_eta_s                    seconds to the end at that rate; -1 while it can't be told
ray_mlb_batch_wall_s                   seconds since the run began; only grows
ray_mlb_batch_flops{kind}              operations: executed, planned, vanilla (the same clips unpruned); only grows
ray_mlb_batch_budget_spent             spent of the budget, in its own measure; absent where that is time; only grows
ray_mlb_batch_budget_limit             the budget in the same measure; absent where that is time
ray_mlb_batch_busy_share               share of their time, 0 to 1, that captioners were at work
ray_mlb_batch_step_s{step}             seconds of reading, model and writing, summed over their actors; only grows
ray_mlb_batch_starved_by{step}         1 for what the run waits for most (reading, model or writing), 0 for the others
ray_mlb_batch_gpu_hours                GPU-hours held by this run; 0 on CPUs; only grows
ray_mlb_batch_cost                     GPU-hours times limits.price_per_gpu_hour; absent without a price; only grows
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from ray.util.metrics import Gauge

from mlb_batch.books import STEPS, Books

Labels = Mapping[str, str]
# name -> (description, the label beside job_name and run_id)
METRICS = {
    "annotations": ("annotations by outcome", "outcome"),
    "errors": ("failed attempts by class", "error_class"),
    "expected": ("annotations met in the input so far", ""),
    "left": ("annotations still to come, by the plan", ""),
    "videos": ("videos met in the input so far", ""),
    "outcomes_per_s": ("outcomes a second", ""),
    "eta_s": ("seconds to the end; -1 while it can't be told", ""),
    "wall_s": ("seconds since the run began", ""),
    "flops": ("operations, by kind", "kind"),
    "budget_spent": ("spent of the budget, in its own measure", ""),
    "budget_limit": ("the budget in the same measure", ""),
    "busy_share": ("share of their time that captioners were at work", ""),
    "step_s": ("seconds of work, by step", "step"),
    "starved_by": ("1 for what the run waits for most", "step"),
    "gpu_hours": ("GPU-hours held", ""),
    "cost": ("GPU-hours times limits.price_per_gpu_hour", ""),
}


class Metrics:
    """Made once a run, after Ray is connected."""

    def __init__(self, job: str, run_id: str) -> None:
        plain = job.encode("ascii", "backslashreplace").decode()  # all that Ray's exporter takes
        self._labels = {"job_name": plain, "run_id": run_id}
        self._gauges = {
            name: Gauge(f"mlb_batch_{name}", said, ("job_name", "run_id", *filter(None, [label])))
            for name, (said, label) in METRICS.items()
        }

    def show(self, books: Books) -> None:
        for name, by_label in values(books).items():
            for label, value in by_label.items():
                own = {METRICS[name][1]: label} if label else {}
                self._gauges[name].set(value, {**self._labels, **own})


def values(books: Books) -> dict[str, dict[str, float]]:
    """By metric and label; "" where a metric has none of its own."""
    counts = books.counts
    outcomes: dict[str, float] = {"done": books.annotated, "failed": books.failed, "skipped_done": counts.skipped_done,
                "skipped_failed": counts.skipped_failed}  # fmt: skip
    single: dict[str, float | None] = {
        "expected": counts.expected,
        "left": books.left,
        "videos": counts.videos,
        "outcomes_per_s": books.rate,
        "eta_s": -1 if books.eta_s is None else books.eta_s,
        "wall_s": books.wall_s,
        "budget_spent": books.spent,
        "budget_limit": None if books.budget is None else min(books.budget, sys.float_info.max),
        "busy_share": books.busy_share,
        "gpu_hours": books.gpu_hours,
        "cost": books.price,
    }
    return {
        "annotations": outcomes,
        "errors": dict(books.errors_by_class),
        "flops": {kind: books.bill[f"flops_{kind}"] for kind in ("executed", "planned", "vanilla")},
        "step_s": {step: getattr(books, seconds) for step, seconds in STEPS.items()},
        "starved_by": {step: float(step == books.starved_by) for step in STEPS},
        **{name: {"": float(value)} for name, value in single.items() if value is not None},
    }
