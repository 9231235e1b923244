"""The canary: a share of the job's videos is also answered unpruned and with random pruning, before the rest is run.

Its bill is its own and outside the budget; the summary says it. Where the job's answers agree too little with the
unpruned ones, and the job says how little is too little, it stops there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

from mlb_batch.errors import JobError
from mlb_batch.ledger import RunFolder
from mlb_batch.planning import plan
from mlb_batch.progress import failed
from mlb_batch.quality.agreement import Key, Row, agreement, answers, pairs
from mlb_batch.quality.rivals import refuse_costly_rivals, rival, rival_output
from mlb_batch.spec import JobSpec

Annotate = Callable[..., dict[str, Any]]  # a job (unless it is this one), and `share`: of its videos; its summary


def canary(
    spec: JobSpec, annotate: Annotate, annotate_rival: Annotate, replan: bool = False
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What was found; and the summary of the part that was stopped, where one was."""
    priced = cache(partial(plan, spec, replan))
    refuse_costly_rivals(spec, priced)
    share = spec.canary.share
    own = annotate(share=share)
    if own["stopped"]:
        return {}, own
    rivals: dict[str, dict[Key, Row]] = {}
    flops = 0
    for method in spec.canary_rivals:
        summary = annotate_rival(rival(spec, method, rival_output(spec, method), priced), share=share)
        if summary["stopped"]:
            return {}, summary
        rivals[method] = answers(summary["output"], summary["fingerprint"])
        flops += summary["flops_executed"]
    theirs = set[Key]().union(*rivals.values())
    said = {spec.prune.method: answers(own["output"], own["fingerprint"], theirs), **rivals}
    found = {"share": share, "flops_executed": flops, **compared(spec.prune.method, said)}
    if error := _too_far(spec, found):
        failed(RunFolder(own["output"], own["run_id"]), error)  # its own pass went well, but not what it was for
        raise error
    return found, None


def compared(method: str, said: dict[str, dict[Key, Row]]) -> dict[str, Any]:
    """The method against each other one; and random pruning against none, which is what any method must beat."""
    mine = said[method]
    out: dict[str, Any] = {
        "videos": len({key[0] for key in mine}),
        "against": {other: agreement(pairs(mine, rows)) for other, rows in said.items() if other != method},
    }
    if "random" in said and "none" in said and method not in ("random", "none"):
        out["random_against_none"] = agreement(pairs(said["random"], said["none"]))
    return out


def _too_far(spec: JobSpec, found: dict[str, Any]) -> JobError | None:
    least = spec.canary.least_agreement
    measured = found["against"].get("none")  # the unpruned job has nothing to fall from
    if least is None or measured is None:
        return None
    if not measured["rows"]:
        return JobError(
            f"the canary stopped the job: canary.least_agreement is {least:.1%}, and in its {found['share']:.1%} of "
            "the videos no answer stands beside an unpruned one; raise canary.share, or see with `mlb-batch report` "
            "what errors there are"
        )
    if measured["agreement"] < least:
        return JobError(
            f"the canary stopped the job: {measured['rows']} answers agree to {measured['agreement']:.1%} with the "
            f"unpruned ones, and canary.least_agreement is {least:.1%}; raise the budget, change the method, or lower "
            "it. What was annotated stays"
        )
    return None
