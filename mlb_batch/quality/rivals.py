"""The same job with another method: what a job's answers are held against.

`none` answers unpruned; any other method gets what the job itself spends, so that only the choice of tokens differs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from mlb_batch.errors import BudgetError
from mlb_batch.planning import Plan, plan
from mlb_batch.spec import JobSpec
from mlb_batch.storage import join

Priced = Callable[[], Plan]  # the job's own plan, for who needs it: to make one looks at every header of the input


def rival(spec: JobSpec, method: str, output: str, priced: Priced) -> JobSpec:
    """A job of its own: one output, one fingerprint, one bill."""
    return spec.changed(
        name=f"{spec.name}-{method}",
        prune={"method": method, **spec.prune.model_dump(include={"select", "compact_cache", "feature_model"})},
        budget=_budget(spec, method, priced),
        canary={"share": 0.0},
        output={"uri": output, "target_file_mb": spec.output.target_file_mb, "commit_rows": spec.output.commit_rows},
    )


def rival_output(spec: JobSpec, method: str) -> str:
    return join(spec.output.uri, f"canary/{method}")


def refuse_costly_rivals(spec: JobSpec, priced: Priced) -> None:
    """Before anything runs: a method with a floor above what the job spends would end the canary after the job's own
    pass. `none` has no floor.
    """
    if not spec.canary.share:
        return
    for method in (name for name in spec.canary_rivals if name != "none"):
        other = rival(spec, method, rival_output(spec, method), priced)
        try:
            plan(other)
        except BudgetError as error:
            priced()  # where the job's own budget is below its floor, that is what is to be said
            told = f"canary.against: {method} can't meet this budget: {error}; or take {method} out of canary.against"
            raise BudgetError(told) from None


def _budget(spec: JobSpec, method: str, priced: Priced) -> dict[str, Any]:
    if method == "none":
        return {"ratio": 1.0}
    if spec.budget.ratio is not None:
        return {"ratio": spec.budget.ratio, "scope": spec.budget.scope, "convention": spec.budget.convention}
    own = priced()
    if spec.budget.kind == "gpu_hours":  # as many operations, where the budget itself counts time
        return {"ratio": _share(own.planned.llm, own.vanilla.llm)}
    share = _share(own.budget.planned, own.budget.vanilla)
    return {"ratio": share, "scope": spec.budget.scope, "convention": spec.budget.convention}


def _share(planned: int, vanilla: int) -> float:
    # The next float above: the nearest may lie below, and the last step of what was planned would be out of reach.
    return min(1.0, math.nextafter(planned / vanilla, 2.0)) if vanilla else 1.0
