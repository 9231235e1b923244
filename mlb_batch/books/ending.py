"""How a run ended: its summary, what the command exits with, and whether the job is complete."""

from __future__ import annotations

from typing import Any

from mlb_batch.amounts import written
from mlb_batch.books.account import Books
from mlb_batch.spec import JobSpec
from mlb_batch.stop import INTERRUPTED, STOPPED


def closed(spec: JobSpec, books: Books, stopped: str, **run: Any) -> dict[str, Any]:
    """The summary, once the books were found to add up; `run`: what else is to be known of it."""
    books.end = stopped
    books.check(stopped)
    summary = {**books.as_json(), "stopped": stopped, "limit": books.limit, "share": books.share, **run}
    code = exit_code(spec, summary)
    return summary | {"exit_code": code, "complete": complete(books, summary, code)}


def exit_code(spec: JobSpec, summary: dict[str, Any]) -> int:
    """0 everything annotated, 3 with more unresolved errors than the job allows; 143 and 130 where a signal came."""
    if summary["stopped"] == "SIGTERM":
        return STOPPED
    if summary["stopped"] == "SIGINT":
        return INTERRUPTED
    if summary["stopped"]:  # the deadline: what is left is unresolved
        return 3
    allowed = written(spec.limits.max_error_share or 0.0) * summary["expected"]
    return 3 if summary["errors"] > allowed else 0


def complete(books: Books, summary: dict[str, Any], code: int) -> bool:
    """All of the input was gone through, and nothing is left that another run of the same command would try, or no more
    than the job allows. Where nothing was answered there is nothing that readers could be sent to, and what a plan that
    is not settled came to is not the job's last word.
    """
    whole = not summary["stopped"] and books.limit is None and books.share == 1
    answered = summary["annotated"] + summary["skipped_done"] > 0
    return books.plan.settled and whole and answered and (code == 0 or books.to_retry == 0)
