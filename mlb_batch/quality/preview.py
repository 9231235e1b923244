"""The preview: a few of the user's own videos, answered unpruned, as the job would, and with random pruning.

Nothing of it is written to the job's output.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rich.table import Column, Table
from rich.text import Text

from mlb_batch.errors import SpecError
from mlb_batch.outside import printable
from mlb_batch.planning import freeze, plan
from mlb_batch.quality.agreement import Key, Row, answers, said
from mlb_batch.quality.canary import compared
from mlb_batch.quality.rivals import rival
from mlb_batch.spec import JobSpec

MOST_CHARS = 120


def preview(spec: JobSpec, annotate: Callable[[JobSpec], dict[str, Any]]) -> dict[str, Any]:
    """What each way of pruning says to every prompt of the videos that `annotate` goes through; the summary of the run
    that was stopped, where one was.
    """
    if spec.prune.method == "none":
        raise SpecError("prune.method: none is the unpruned job itself; choose a method to see beside it")
    with tempfile.TemporaryDirectory(prefix="mlb-batch-preview-") as folder:
        own = spec.changed(output={"uri": f"{folder}/own"}, canary={"share": 0.0})
        priced = plan(spec)
        if priced.reused:  # what earlier runs of the job have solved
            freeze(own, replace(priced, reused=False))
        others = [m for m in ("none", "random") if m != spec.prune.method]
        jobs = {spec.prune.method: own} | {m: rival(spec, m, f"{folder}/{m}", lambda: priced) for m in others}
        said_by = {}
        summaries = {}
        for method, job in jobs.items():
            summaries[method] = annotate(job)
            if summaries[method]["stopped"]:
                return summaries[method]
            said_by[method] = answers(job.output.uri, summaries[method]["fingerprint"])
    costs = {method: summary["flops_executed"] for method, summary in summaries.items()}
    return {
        "method": spec.prune.method,
        "flops_executed": costs,
        "errors": {method: summary["errors"] for method, summary in summaries.items()},
        "errors_by_class": {method: summary["errors_by_class"] for method, summary in summaries.items()},
        "exit_code": max(summary["exit_code"] for summary in summaries.values()),
        **compared(spec.prune.method, said_by),
        "rows": _rows(said_by),
    }


def _rows(said_by: dict[str, dict[Key, Row]]) -> list[dict[str, Any]]:
    keys = sorted(set().union(*(rows.keys() for rows in said_by.values())))
    out = []
    for key in keys:
        row = next(rows[key] for rows in said_by.values() if key in rows)
        texts = {method: said(rows[key]) if key in rows else "" for method, rows in said_by.items()}
        out.append({"video_id": key[0], "prompt_id": key[3], "prompt": row["prompt"], "answers": texts})
    return out


def side_by_side(found: dict[str, Any]) -> Table:
    """Unpruned first: the other columns are read against it."""
    methods = sorted(found["flops_executed"], key=lambda m: (m != "none", m != found["method"]))
    titles = {"none": "unpruned", found["method"]: found["method"], "random": "random"}
    lost = {titles[m]: found["errors_by_class"][m] for m in methods if found["errors"][m]}
    why = (f"{title}: no answer to {_counts(by_class)}" for title, by_class in lost.items())
    columns = (Column("video", overflow="fold"), "prompt", *(titles[m] for m in methods))  # uris differ at their ends
    table = Table(*columns, title=f"{len(found['rows'])} answers", caption="\n".join(why) or None)
    for row in found["rows"]:
        told = (row["video_id"], row["prompt"], *(row["answers"][m] for m in methods))
        table.add_row(*(Text(printable(one, MOST_CHARS)) for one in told))  # what is in brackets is no markup
    return table


def _counts(by_class: dict[str, int]) -> str:
    return f"{sum(by_class.values()):,} ({', '.join(f'{name} {count:,}' for name, count in by_class.items())})"
