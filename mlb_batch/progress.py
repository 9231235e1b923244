"""What a person sees of a running job: a bar on a terminal, plain lines elsewhere, progress.json for everyone else."""

from __future__ import annotations

import sys
import time
from calendar import timegm
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from mlb_batch.amounts import at_price, gpu_hours
from mlb_batch.books import STEPS, Books
from mlb_batch.errors import MlbBatchError, OutputError
from mlb_batch.ledger import RunFolder, holder_of
from mlb_batch.ledger.runs import newest_first
from mlb_batch.storage import open_store
from mlb_batch.storage_errors import first_line, hurried

TICK_S = 1.0  # rows may come by the hundred a second
LINE_EVERY_S = 10.0
FILE_EVERY_S = 15.0
SILENT_S = 90.0  # without a new progress file: no run is behind it any more
TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"


class Progress:
    def __init__(self, books: Books, folder: RunFolder, also: Callable[[Books], None]) -> None:
        """`also` is shown the books at every tick, and at the end."""
        self._books, self._folder, self._also = books, folder, also
        self._tick_s = self._line_s = self._file_s = time.monotonic()
        self._state = ""
        console = Console(stderr=True)
        self._bar: Bar | None = None
        if console.is_terminal:
            columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
            self._bar = Bar(*columns, console=console, transient=False)
            self._task = self._bar.add_task("starting", total=books.asked)

    def before(self, said: str) -> None:
        """Called with all that is found out while there can't be a row yet."""
        now, first = time.monotonic(), self._state != "measuring"
        if not first and now - self._tick_s < TICK_S:
            return
        self._tick_s = now
        if self._bar:
            self._bar.update(self._task, description=said)
        elif first or now - self._line_s >= LINE_EVERY_S:
            print(said, file=sys.stderr, flush=True)
            self._line_s = now
        if first or now - self._file_s >= FILE_EVERY_S:
            self._also(self._books)
            self._write("measuring", line=said)

    def __enter__(self) -> Progress:
        self._write("starting")
        self.warn(self._books.plan.budget.over)  # nobody may have looked at the plan, night after night
        if self._bar:
            self._bar.start()
        return self

    def warn(self, said: str) -> None:
        if said:
            print(f"warning: {said}", file=sys.stderr, flush=True)

    def show(self) -> None:
        """Called with all that arrives; says something when there is something to say."""
        now = time.monotonic()
        if now - self._tick_s < TICK_S:
            return
        self._tick_s = now
        self._also(self._books)
        if self._bar:
            self._draw(self._bar)
        elif now - self._line_s >= LINE_EVERY_S:
            print(line(self._books), file=sys.stderr, flush=True)
            self._line_s = now
        if now - self._file_s >= FILE_EVERY_S:
            self._write("running")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is not None:
            self._books.end = said(error)
        if self._bar:
            self._draw(self._bar)
            self._bar.stop()
        else:
            print(line(self._books), file=sys.stderr, flush=True)
        if error is not None:
            failed(self._folder, error, snapshot(self._books, "failed"))
            return
        self._also(self._books)
        self._write("ended")  # the run's last word: all that it leaves is there

    def _draw(self, bar: Bar) -> None:
        bar.update(self._task, completed=self._books.finished, total=self._books.asked, description=line(self._books))

    def _write(self, state: str, **said: str) -> None:
        self._folder.write_json("progress", {**snapshot(self._books, state), **said})
        self._state, self._file_s = state, time.monotonic()


def failed(folder: RunFolder, error: BaseException, told: Mapping[str, Any] | None = None) -> None:
    """The last word of a run that broke, over what it had told. Its storage may be what broke: that is waited for in a
    hurry only, and what it says now is not the error.
    """
    with hurried(), suppress(MlbBatchError):
        told = told or folder.read_json("progress") or {}
        folder.write_json("progress", {**told, "state": "failed", "error": said(error)})


def said(error: BaseException) -> str:
    """One line; of what was not raised on purpose, its kind too."""
    return first_line(error) if isinstance(error, MlbBatchError) else repr(error)


def snapshot(books: Books, state: str) -> dict[str, Any]:
    return {
        "state": state,
        "line": line(books),
        "updated_at": time.strftime(TIME_FORMAT, time.gmtime()),
        **books.as_json(),
        "planned_annotations": books.plan.prompts,
        "left": books.left,
        "eta_s": books.eta_s,
    }


def line(books: Books) -> str:
    """done 120 · failed 3 · left 77 · 4.1/s · ETA 0:19 · 1.2e+12 FLOPs, 61% of the budget · starved by reading"""
    parts = [f"done {books.annotated + books.counts.skipped_done:,}"]
    if books.counts.skipped_done:
        parts[0] += f" ({books.counts.skipped_done:,} by earlier runs)"
    parts.append(f"failed {books.unresolved:,}")
    if books.left is not None:
        parts.append(f"left {books.left:,}")
    parts.append(f"{books.rate:.3g}/s")
    if books.eta_s is not None:
        parts.append(f"ETA {clock(books.eta_s)}")
    if books.spent and books.budget:
        by = ", by this run" if books.counts.skipped_done else ""  # what earlier ones spent is in their rows
        parts.append(f"{books.spent:.3g} {books.plan.budget.unit}, {books.spent / books.budget:.0%} of the budget{by}")
    if books.model_s:
        parts.append(f"starved by {books.starved_by}")
    return " · ".join(parts)


def clock(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"


def latest(output_uri: str) -> dict[str, Any]:
    """The newest run's progress file, and who holds the output: that run, or a canary's job between its passes."""
    store = open_store(output_uri)
    for run_id, progress in newest_first(store, "progress"):
        return {"run_id": run_id, **progress, "held_by": str(holder_of(store) or "")}
    raise OutputError(f"{output_uri}: no run is recorded here; is it the output.uri of a job that was started?")


def describe(progress: dict[str, Any]) -> str:
    """A progress file for people. A running job renews its file; one that is long silent was killed."""
    silent_s = time.time() - timegm(time.strptime(progress["updated_at"], TIME_FORMAT))
    state = progress["state"]
    if state == "failed":
        state = f"failed: {progress['error']}"
    elif state == "ended" and progress.get("held_by"):
        state = f"ended; at work here now: {progress['held_by']}"
    elif state != "ended" and silent_s > SILENT_S:
        state = f"silent for {clock(silent_s)}: killed, or its node is gone; run the same command to resume"
    return "\n".join([f"run {progress['run_id']}: {state}", progress["line"], *_details(progress)])


def _details(progress: dict[str, Any]) -> list[str]:
    """Lines for what the line above has no room for; those that have something to say."""
    failed = ", ".join(f"{name} {count:,}" for name, count in sorted(progress["errors_by_class"].items()))
    steps = ", ".join(f"{step} {clock(progress[seconds])}" for step, seconds in STEPS.items())
    flops = f"{progress['flops_executed']:.3g} FLOPs of {progress['flops_vanilla']:.3g} unpruned"
    lost = f", {lost:.3g} more without a result" if (lost := progress.get("flops_without_result")) else ""
    held = f", {gpu_hours(progress['gpu_hours'])} held" if progress["gpu_hours"] else ""
    return [
        *([f"failed   {failed}"] if failed else []),
        f"time     {steps}, summed over actors; captioners busy {progress['gpu_busy_share']:.0%}",
        f"cost     {flops}{lost}{held}{at_price(progress['cost'])}",
    ]
