"""evaluate(): the cells one after another, each an ordinary job; then their answers against the truth."""

from __future__ import annotations

import io
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mlb_batch.amounts import written
from mlb_batch.errors import BudgetError, OutputError
from mlb_batch.evaluate import bias, kept, results, summary
from mlb_batch.evaluate.benchmarks import BENCHMARKS, WORLDS
from mlb_batch.evaluate.cells import Cell, cells, means_of, short_names
from mlb_batch.evaluate.items import Item, amount
from mlb_batch.evaluate.judge import Judge
from mlb_batch.evaluate.manifest import Prepared, prepared, videos_folder, written_manifest
from mlb_batch.evaluate.memory import CaptionersPeak
from mlb_batch.evaluate.pictures import quality_charts
from mlb_batch.evaluate.results import Answers, Row
from mlb_batch.evaluate.spec import EvalSpec
from mlb_batch.evaluate.summary import Counting
from mlb_batch.evaluate.tables import Evaluation, markdown
from mlb_batch.evaluate.world import Say
from mlb_batch.planning import Setup
from mlb_batch.planning.frozen import thaw
from mlb_batch.planning.identity import fingerprint_of, key_of
from mlb_batch.spec import JobSpec
from mlb_batch.storage import Store, open_store
from mlb_batch.storage_errors import first_line

Annotate = Callable[[JobSpec], dict[str, Any]]  # a job in, its summary out
_WORLD_NOTES = {"world": "the procedural world, held-out clips", "world-image": "still scenes of the procedural world"}


@dataclass(frozen=True)
class Ran:
    """What became of one cell."""

    fingerprint: str
    answers: Answers
    summary: Mapping[str, Any]  # of this call's run; empty where there was nothing left to do


def evaluate(spec: EvalSpec, annotate: Annotate, say: Say) -> dict[str, Any]:
    """What is not answered yet is; then everything is scored and written again. The evaluation's summary."""
    store = open_store(spec.output.uri)
    judge = Judge(spec.judge, store) if spec.judge else None
    every = cells(spec, store.uri, videos := videos_folder(spec, store))
    means = {cell.name: means_of(cell) for cell in every}
    if judge:
        judge.greet()  # all of this first: mistakes cost nothing yet
    say(f"preparing {spec.benchmark.name}")
    found = prepared(spec, store, videos, say)
    items = found.items
    stood = {cell.name: _stood(cell, means[cell.name], spec, found) for cell in every}
    manifest = written_manifest(spec, store, found)  # only now: an evaluation that is refused leaves nothing to read
    every = [cell.over(manifest) for cell in every]
    say(f"{amount(items)}, {len(every)} cells")
    ran: dict[str, Ran] = {}
    refused: dict[str, str] = {}
    for number, cell in enumerate(every, start=1):
        say(f"cell {number} of {len(every)}: {cell.name}")
        try:
            ran[cell.name] = _run(cell, stood[cell.name], found, annotate)
        except BudgetError as error:  # what this method can't do at this budget is a finding, not the end
            refused[cell.name] = str(error)
            say(f"  not run: {error}")
            continue
        if stopped := ran[cell.name].summary.get("stopped"):
            return {**_ended(spec, items, ran, refused, int(ran[cell.name].summary["exit_code"])), "stopped": stopped}
    if refused and not ran:
        raise BudgetError("no cell can be run:\n" + "\n".join(f"{name}: {why}" for name, why in refused.items()))
    done = [cell for cell in every if cell.name in ran]
    costs = _write(spec, store, judge, found, done, ran, refused)
    whole = all(_whole(cell, costs[cell.name], judge is not None) for cell in done)
    return _ended(spec, items, ran, refused, 0 if whole else 3)


def _stood(cell: Cell, means: Setup, spec: EvalSpec, given: Prepared) -> Ran | None:
    """What earlier evaluations left of a cell, once a run of it has solved its budget.

    Answers are found by their questions' ids: those of another world's clips must not be held against this one's truth.
    """
    solved = thaw(cell.job, key_of(cell.job, means))
    if solved is None:
        return None
    fingerprint = fingerprint_of(cell.job, means, solved)
    answers = results.read_answers(cell.job.output.uri, fingerprint)
    made_in = given.videos.rpartition("/")[2] if spec.benchmark.name in WORLDS else ""
    if other := next(answers.to_others(given.items, spec.asked == "alone", made_in), None):
        raise OutputError(
            f"output: {spec.output.uri} holds answers to other questions, or to questions that were asked in another "
            f"way ({other!r}, for one); give this evaluation an output of its own"
        )
    return Ran(fingerprint, answers, {})


def _run(cell: Cell, stood: Ran | None, given: Prepared, annotate: Annotate) -> Ran:
    """A cell whose every answer stands is not run again. Errors are, where a video that was not found is there now."""
    if stood and stood.answers.complete(given.items):
        return stood
    job = cell.job
    if stood and stood.answers.found_since(given.items, given.missing):
        job = job.changed(retry={**job.retry.model_dump(), "errors": True})
    with CaptionersPeak() as peak:
        done = annotate(job)
    answers = results.read_answers(cell.job.output.uri, done["fingerprint"])
    return Ran(done["fingerprint"], answers, {**done, "peak_memory_mb": peak.mb})


def _whole(cell: Cell, cost: Mapping[str, Any], judged: bool) -> bool:
    """Whether as much is answered, and graded, as the job's limits ask for."""
    lacking = cost["unanswered"] + (cost["ungraded"] if judged else 0)
    allowed = written(cell.job.limits.max_error_share or 0.0) * (cost["answered"] + cost["unanswered"])
    return bool(lacking <= allowed)


def _ended(spec: EvalSpec, items: Sequence[Item], ran: Mapping[str, Ran], refused: Mapping[str, str],
           exit_code: int) -> dict[str, Any]:  # fmt: skip
    summaries = [one.summary for one in ran.values()]
    return {
        "output": spec.output.uri,
        "cells": len(ran),
        "cells_not_run": dict(refused),
        "answers": sum(item.id in one.answers.said for one in ran.values() for item in items),
        "rows_written": sum(int(one.get("rows_written", 0)) for one in summaries),
        "errors": sum(item.id in one.answers.errors for one in ran.values() for item in items),
        "exit_code": exit_code,
    }


def _write(
    spec: EvalSpec, store: Store, judge: Judge | None, given: Prepared, done: Sequence[Cell], ran: Mapping[str, Ran],
    refused: Mapping[str, str],
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """The tables, the pictures and what they are made of; what each cell cost."""
    items, (counting, title, note) = given.items, _counted(spec)
    rows = {
        cell.name: results.results(spec.benchmark.name, cell, items, ran[cell.name].answers, judge) for cell in done
    }
    estimates = summary.estimates(rows, done, counting)
    costs = _costs(store, rows, done, ran)
    found = Evaluation(
        spec=spec,
        title=title,
        note=note,
        asked=amount(items),
        clips=len({item.video for item in items}),
        cells=done,
        estimates=estimates,
        costs=costs,
        refused=refused,
        facts={name: _facts(some) for name, some in rows.items()},
        average=counting.average,
        judges=judge.names() if judge else (),
    )
    pictures = dict(quality_charts(estimates, costs, done))
    pictures |= dict(kept.pictures(done, {name: one.fingerprint for name, one in ran.items()}))
    if rows:
        store.replace("results.parquet", _parquet(results.to_table([row for some in rows.values() for row in some])))
        store.replace("summary.parquet", _parquet(summary.to_table(estimates)))
    told = {"evaluation": spec.told(), "costs": costs, "estimates": estimates, "not_run": refused}
    store.replace("summary.json", json.dumps(_plain(told), indent=1).encode())
    _show(store, found, pictures)
    if spec.bias is not None:  # last: what can't be measured keeps nothing else from being written
        found.bias = _bias(spec, store, given, pictures)
        _show(store, found, pictures)
    return costs


def _show(store: Store, found: Evaluation, pictures: Mapping[str, str]) -> None:
    found.pictures = list(pictures)
    for name, picture in pictures.items():
        store.replace(name, picture.encode())
    store.replace("README.md", markdown(found).encode())


def _counted(spec: EvalSpec) -> tuple[Counting, str, str]:
    """How the benchmark counts, its title, and what to know of it."""
    name = spec.benchmark.name
    if name not in BENCHMARKS:
        return Counting(), name, _WORLD_NOTES[name]
    public = BENCHMARKS[name]
    return Counting(public.unanswered, public.average), public.title, public.note


def _costs(
    store: Store, rows: Mapping[str, Sequence[Row]], done: Sequence[Cell], ran: Mapping[str, Ran]
) -> dict[str, dict[str, Any]]:
    unpruned = {cell.model: rows[cell.name] for cell in done if cell.rule == "none"}
    peaks = _peaks(store, done, ran)
    return {
        cell.name: {**summary.costs(rows[cell.name], unpruned.get(cell.model)), "peak_memory_mb": peaks[cell.name]}
        for cell in done
    }


def _peaks(store: Store, done: Sequence[Cell], ran: Mapping[str, Ran]) -> dict[str, float]:
    """The captioners' peak memory of each cell, over all runs that wrote its rows; 0 where none could tell."""
    try:
        known = {rows: float(mb) for rows, mb in json.loads(store.read("memory.json")).items()}
    except FileNotFoundError:
        known = {}
    except (ValueError, TypeError, AttributeError) as error:
        remedy = "delete it, and the peaks that are known now stand alone"
        raise OutputError(f"{store.uri}/memory.json is damaged ({first_line(error)}): {remedy}") from None
    for cell in done:
        rows = ran[cell.name].fingerprint
        known[rows] = max(known.get(rows, 0.0), float(ran[cell.name].summary.get("peak_memory_mb", 0.0)))
    store.replace("memory.json", json.dumps(known).encode())
    return {cell.name: known[ran[cell.name].fingerprint] for cell in done}


def _facts(rows: Iterable[Row]) -> tuple[Counter[str], Counter[str]]:
    captions = [row for row in rows if row["kind"] == "caption"]
    return (
        Counter(fact for row in captions for fact in row["invented"]),
        Counter(fact for row in captions for fact in row["missed"]),
    )


def _bias(spec: EvalSpec, store: Store, given: Prepared, pictures: dict[str, str]) -> list[str]:
    assert spec.bias is not None
    source = {"videos": given.videos, "allow": spec.benchmark.allowed(given.videos)}
    found: list[bias.Bias] = []
    for model, short in zip(spec.models, short_names([one.id for one in spec.models]), strict=True):
        job = JobSpec.from_dict({**spec.job, "input": source, "prompts": [
            {"id": "any", "kind": "qa", "text": "any"}], "model": model.model_dump(), "output": store.uri})  # fmt: skip
        measured = bias.measure(short, job, given.there, spec.bias.clips)
        pictures[f"bias-{short}.svg"] = bias.picture(measured)
        pictures[f"bias-{short}-places.svg"] = bias.places_picture(measured)
        found += measured
    store.replace("bias.parquet", _parquet(pa.Table.from_pylist(bias.table_rows(found))))
    return bias.lines(found)


def _parquet(table: pa.Table) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, compression="zstd")
    return file.getvalue()


def _plain(value: Any) -> Any:
    """JSON knows no number that is none."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value
