"""Rows on their way into the ledger: what waits to be committed, and when it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from types import TracebackType

from mlb_batch.errors import JobError
from mlb_batch.ledger import Ledger
from mlb_batch.storage_errors import hurried
from mlb_batch.work import Outcome, Row

COMMIT_S = 30.0  # a slow model's rows are committed after this time, however few they are


class Uncommitted:
    """Rows on their way into the ledger: committed when there are enough of them, after a while, and on the way out.

    On the way out of an error too: a broken chain must not cost what it had finished. But not where the ledger itself
    is what broke.
    """

    def __init__(self, ledger: Ledger, commit_rows: int, wrote: Callable[[float], None]) -> None:
        """`wrote` is told how many seconds each commit took."""
        self._ledger, self._commit_rows, self._wrote = ledger, commit_rows, wrote
        self._annotations: list[Row] = []
        self._errors: list[Row] = []
        self._selections: list[Row] = []
        self._since_s = time.monotonic()
        self._ledger_broke = False
        self.written = 0

    def __enter__(self) -> Uncommitted:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if not self._ledger_broke:
            with hurried() if isinstance(error, JobError) else nullcontext():
                self._commit()

    def add(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            self._annotations += outcome.annotations
            self._errors += outcome.errors
            self._selections += outcome.selections
        waiting = len(self._annotations) + len(self._errors)
        if waiting >= self._commit_rows or time.monotonic() - self._since_s > COMMIT_S:
            self._commit()

    def _commit(self) -> None:
        if self._annotations or self._errors:
            self._ledger_broke, begun_s = True, time.monotonic()
            self.written += self._ledger.commit(self._annotations, self._errors, self._selections)
            self._ledger_broke = False
            self._wrote(time.monotonic() - begun_s)
        self._annotations, self._errors, self._selections = [], [], []
        self._since_s = time.monotonic()
