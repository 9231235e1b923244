"""The report of an output: numbers counted from its rows, for people and for programs, and how to read the rows.

The same as a page to look at is in page/.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mlb_batch.amounts import amount, at_price, gpu_hours, percent
from mlb_batch.columns import BILL
from mlb_batch.errors import OutputError
from mlb_batch.ledger.ids import DoneIds
from mlb_batch.ledger.parts import list_fingerprints, rows_of, undisturbed
from mlb_batch.ledger.runs import in_place, newest_first, read_current
from mlb_batch.outside import printable
from mlb_batch.storage import Store, join, open_store
from mlb_batch.unresolved import unresolved

MOST_EXAMPLES = 10
SUMS = (*BILL, "num_prompt_tokens", "num_new_tokens", "num_visual_tokens", "num_kept_tokens", "read_s", "model_s")
COUNTED = ("kind", "status", "finish_reason", "method")


def report(output_uri: str, fingerprint: str | None = None) -> dict[str, Any]:
    """The numbers of one fingerprint: the one asked for, else the newest run's, ended or not, else the current one."""
    return undisturbed(lambda: _report(output_uri, fingerprint))


def _report(output_uri: str, fingerprint: str | None) -> dict[str, Any]:
    store, current = open_store(output_uri), read_current(output_uri) or {}
    known = sorted({one for kind in ("annotations", "errors") for one in list_fingerprints(store, kind)})
    if fingerprint is not None and fingerprint not in known:
        raise OutputError(f"{output_uri}: no rows of fingerprint {fingerprint}; there are {', '.join(known) or 'none'}")
    run_id, planned = _newest_run(store, fingerprint)
    fingerprint = fingerprint or planned or _without_runs(output_uri, known, current)
    ended, summary = _newest_summary(store, fingerprint)
    done, annotations = _count_annotations(store, fingerprint)
    errors = _count_errors(store, fingerprint, done)
    return {
        "output": output_uri,
        "fingerprint": fingerprint,
        "fingerprints": known,
        "current": current.get("fingerprint"),
        **annotations,
        "errors": errors,
        "reconciliation": _reconcile(annotations["annotations"], errors["unresolved"], summary),
        "last_run": summary,
        "unfinished_run": run_id if run_id != ended else None,
        "how_to_read": how_to_read(output_uri, fingerprint, current),
    }


def _newest_run(store: Store, fingerprint: str | None) -> tuple[str, str]:
    """Of this fingerprint, or of any: its id and its fingerprint, whatever became of it; "" where none is recorded."""
    every = ((run_id, told.get("fingerprint")) for run_id, told in newest_first(store, "plan", "summary"))
    return next(((run_id, str(one)) for run_id, one in every if one and fingerprint in (None, one)), ("", ""))


def _newest_summary(store: Store, fingerprint: str) -> tuple[str, dict[str, Any] | None]:
    """And the run that left it."""
    every = newest_first(store, "summary")
    return next((one for one in every if one[1].get("fingerprint") == fingerprint), ("", None))


def _without_runs(output_uri: str, known: Sequence[str], current: Mapping[str, Any]) -> str:
    if current.get("fingerprint"):
        return str(current["fingerprint"])
    if len(known) == 1:
        return known[0]
    if known:
        several = f"{output_uri}: several fingerprints and no recorded run"
        raise OutputError(f"{several}; name one with --fingerprint: {', '.join(known)}")
    raise OutputError(f"{output_uri}: no annotations are here; is it the output.uri of a job that has run?")


def _count_annotations(store: Store, fingerprint: str) -> tuple[DoneIds, dict[str, Any]]:
    done = DoneIds()
    videos: set[int] = set()
    counts: dict[str, Counter[str]] = {name: Counter() for name in COUNTED}
    sums: dict[str, Any] = dict.fromkeys(SUMS, 0)
    columns = ("annotation_id", "video_id", *COUNTED, *SUMS)
    for rows in rows_of(store, "annotations", fingerprint, columns):
        done.update(rows["annotation_id"].to_pylist())
        videos.update(map(hash, rows["video_id"].to_pylist()))
        for name, counter in counts.items():
            counter.update(rows[name].to_pylist())
        for name in SUMS:  # added up as Python numbers: the FLOPs of a large job don't fit in 64 bits
            sums[name] += sum(rows[name].to_pylist())
    numbers: dict[str, Any] = {"annotations": len(done), "videos": len(videos)}
    numbers.update({f"by_{name}": dict(counter.most_common()) for name, counter in counts.items()})
    return done, {**numbers, "sums": sums}


def _count_errors(store: Store, fingerprint: str, done: DoneIds) -> dict[str, Any]:
    """Unresolved annotations by their last error; failures that a later attempt made good are counted apart."""
    last, failures = unresolved(store, fingerprint, done)
    by_class: dict[str, dict[str, Any]] = {}
    for name, count in Counter(row["error_class"] for row in last).most_common():
        said = dict.fromkeys((row["uri"], row["message"]) for row in last if row["error_class"] == name)
        examples = [{"uri": uri, "message": message} for uri, message in list(said)[:MOST_EXAMPLES]]
        by_class[name] = {"count": count, "examples": examples}
    return {"unresolved": len(last), "failed_attempts": failures, "by_class": by_class}


def _reconcile(annotated: int, unresolved: int, summary: dict[str, Any] | None) -> dict[str, Any]:
    """Never counts too few as accounted for; too many, where runs left rows for what the input no longer has."""
    expected = None if summary is None else summary.get("expected")
    accounted = annotated + unresolved
    return {"expected": expected, "accounted": accounted, "lost": max(0, (expected or 0) - accounted)}


def how_to_read(output_uri: str, fingerprint: str, current: Mapping[str, Any] | None = None) -> str:
    """Lines to paste: one fingerprint's rows in DuckDB, Polars and pandas; while it is compacted, file by file."""
    files = current.get("files", {}) if current and current.get("fingerprint") == fingerprint else {}
    names = files.get("annotations", in_place(fingerprint)["annotations"])
    paths = [join(output_uri, name) for name in names]
    quoted = ["'" + path.replace("'", "''") + "'" for path in paths]  # as SQL does it
    sql = f"[{', '.join(quoted)}]" if len(quoted) > 1 else quoted[0]
    one = json.dumps(paths if len(paths) > 1 else paths[0], ensure_ascii=False)
    folder = one.replace("/*.parquet", "")  # pandas reads folders, not globs
    return (
        f"DuckDB:  SELECT video_id, prompt_id, text FROM read_parquet({sql});\n"
        f'Polars:  polars.scan_parquet({one}).select("video_id", "prompt_id", "text").collect()\n'
        f"pandas:  pandas.read_parquet({folder})"
    )


def to_text(numbers: dict[str, Any]) -> str:
    """The report for a terminal; what came from outside is shown with its control characters escaped."""
    sums, errors, check = numbers["sums"], numbers["errors"], numbers["reconciliation"]
    lines = [
        f"{numbers['output']}  fingerprint {numbers['fingerprint']}"
        + ("  (current)" if numbers["current"] == numbers["fingerprint"] else ""),
        f"annotations  {numbers['annotations']:,} of {numbers['videos']:,} videos  {_counts(numbers['by_kind'])}",
        f"status       {_counts(numbers['by_status'])}",
        f"unresolved   {errors['unresolved']:,}  ({errors['failed_attempts']:,} failed attempts in all)",
    ]
    if numbers["unfinished_run"]:
        lines.insert(1, f"not ended    run {numbers['unfinished_run']}; `mlb-batch status` says how it stands")
    if check["expected"] is not None:
        lines.append(
            f"expected     {check['expected']:,}, accounted for {check['accounted']:,}, lost {check['lost']:,}"
        )
    if sums["flops_vanilla"]:
        told = ("executed", "planned", "vanilla")
        executed, planned, unpruned = (amount(sums[f"flops_{name}"], "FLOPs") for name in told)
        share = percent(sums["flops_planned"] / sums["flops_vanilla"])
        lines.append(
            f"cost         {executed} executed; at the expected length of answers {planned} planned, {share} of "
            f"{unpruned} unpruned"
        )
    last = numbers["last_run"] or {}
    if last.get("flops_budget"):
        share = last["flops_spent_of_budget"] / last["flops_budget"]
        lines.append(f"budget       the newest run spent {percent(share)} of its own")
    if last.get("gpu_hours"):
        lines.append(f"held         {gpu_hours(last['gpu_hours'])} by the newest run{at_price(last['cost'])}")
    lines.append(f"time         reading {sums['read_s']:.1f} s, model {sums['model_s']:.1f} s (summed over rows)")
    for name, one in errors["by_class"].items():
        lines.append(f"  {name}: {one['count']:,}")
        lines += [f"    {printable(example['uri'])}: {printable(example['message'])}" for example in one["examples"]]
    return "\n".join([*lines, "", numbers["how_to_read"]])


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{printable(name)} {count:,}" for name, count in counts.items())
