"""Finished rows as they come out of the chain, without the driver ever waiting for longer than it wants to."""

from __future__ import annotations

import gc
import queue
import re
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import ray
from ray.data import Dataset

from mlb_batch.chain.breaker import Breaker
from mlb_batch.chain.pace import Pace
from mlb_batch.chain.parts import Part
from mlb_batch.errors import JobError, MlbBatchError, UserError
from mlb_batch.spec_parts import LimitsSpec
from mlb_batch.work import items

TICK_S = 1.0
PARTING_S = 5.0  # for what is on its way, so that Ray Data ends while Ray is there
AHEAD = 4  # tables; when the driver falls behind, the chain waits
# Ray's own, behind the message of whatever a step raised; with \n written out where that is a KeyError's.
ADVICE = re.compile(r"(?:\n|\\n|)Failed to apply UDF transform after .*?to be transient\.", re.DOTALL)


class Arrivals:
    """Runs a dataset in a thread of its own and hands over what arrives."""

    def __init__(self, dataset: Dataset, pace: Pace | None, breaker: Breaker | None) -> None:
        self._pace, self._breaker = pace, breaker
        self._tables: queue.Queue[pa.Table | None] = queue.Queue(AHEAD)
        self._error: MlbBatchError | None = None
        self._closed = threading.Event()
        # A daemon: a stopped run must not wait for a model that is at work.
        self._thread = threading.Thread(target=self._pump, args=(dataset,), name="arrivals", daemon=True)
        self._thread.start()

    def take(self, wait_s: float = TICK_S) -> list[Any] | None:
        """What has arrived within `wait_s`; None at the end. JobError where the chain broke, or has to."""
        try:
            table = self._tables.get(timeout=wait_s)
        except queue.Empty:
            if self._pace:
                self._pace.remind()
            return []
        if table is None and self._error is not None:
            raise self._error
        if table is None:
            self._tables.put(None)  # to be found by the next call
            return (self._breaker.rest() if self._breaker else None) or None
        arrived = list(items(table))
        if self._pace:
            self._pace.arrived(arrived)
        return self._breaker.passed(arrived) if self._breaker else arrived

    def close(self) -> None:
        self._closed.set()
        self._thread.join(PARTING_S)
        gc.collect()  # the cycles of a chain that did not end by itself hold its actors, and they their GPUs
        if self._pace:
            self._pace.close()

    def _pump(self, dataset: Dataset) -> None:
        try:
            for table in _tables(dataset):
                self._put(table)
                if self._closed.is_set():
                    return
        except BaseException as error:  # whatever ended the chain: what a thread raises reaches nobody else
            self._error = _translated(error)
        finally:
            self._put(None)

    def _put(self, table: pa.Table | None) -> None:
        while not self._closed.is_set():
            try:
                self._tables.put(table, timeout=1.0)
                return
            except queue.Full:
                continue


def _tables(dataset: Dataset) -> Iterator[pa.Table]:
    """Blocks as they are: `iter_batches` puts three threads and its statistics between, which cost more."""
    for bundle in dataset.iter_internal_ref_bundles():
        for block in bundle.blocks:
            yield ray.get(block.ref)


def everything(chain: Callable[[Part], Dataset], parts: Iterable[Part], limits: LimitsSpec) -> Generator[list[Any]]:
    """What arrives, part after part; empty lists in between, while nothing does."""
    breaker = Breaker(limits)
    for part in parts:
        with arriving(chain(part), part.pace, breaker) as arrivals:
            while (outcomes := arrivals.take()) is not None:
                yield outcomes


@contextmanager
def arriving(dataset: Dataset, pace: Pace | None = None, breaker: Breaker | None = None) -> Iterator[Arrivals]:
    """`pace`: the source's, where it has one. `breaker`: where a run is to end when its storage gives it nothing."""
    arrivals = Arrivals(dataset, pace, breaker)
    try:
        yield arrivals
    finally:
        arrivals.close()


def _translated(error: BaseException) -> MlbBatchError:
    """Ours, as it was raised in a worker; anything else has one line that says what broke.

    With the words of the cause, and not with the cause: its frames hold the chain's actors, and whoever keeps the error
    (a notebook does) would keep their GPUs from the next run.
    """
    cause = getattr(error, "cause", None)
    ours = next((one for one in (cause, error) if isinstance(one, MlbBatchError)), None)
    lines = [line.strip() for line in ADVICE.sub("", str(ours or error)).splitlines() if line.strip()]
    if isinstance(ours, MlbBatchError) and lines:
        kind = UserError if isinstance(ours, UserError) else JobError
        translated = kind(lines[0])
    else:
        broke = lines[-1] if lines else type(error).__name__
        translated = JobError(f"the chain broke: {broke}; run the same command to resume")
    translated.add_note(str(error))
    return translated
