"""Rows that kill their whole actor: a row cannot be caught there, and Ray would feed it to the next actor for ever.

So every step says what it is about to touch, to an actor that outlives it. What was begun and never ended is a
suspect: it runs alone from then on, and after STRIKES deaths it becomes an error row. A process that hangs is ended,
which is a death like any other. Where process after process dies and none ends anything, the machine is to blame and no
row: that ends the job.

A row may take the driver along too (the node runs out of memory), and then the next run must know. What captioners
touch is written to OUTPUT/strikes/<fingerprint>.json before they do, wherever there is reason to: for suspects, and for
everything once a run has died without an end. A run that nothing happens to writes two small files there, and no more.
"""

from __future__ import annotations

import faulthandler
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import ray

from mlb_batch.chain.beside import beside_driver, release
from mlb_batch.errors import JobError
from mlb_batch.ledger.seal import BrokenSeal, sealed_json, unsealed_json
from mlb_batch.storage import Store, open_store
from mlb_batch.storage_errors import hurried

STRIKES = 3
PARTING_S = 5.0  # for the record's last word
IN_A_ROW = 10  # captioning processes of one machine, without one answer between their deaths


Place = tuple[str, str]  # a machine and a process on it


class Trace:
    """The file: the run that is at work ("" once it has ended), and how often each key was begun without an end."""

    def __init__(self, output_uri: str, fingerprint: str, run_id: str) -> None:
        self._store: Store = open_store(output_uri)
        self._name, self._run_id = f"strikes/{fingerprint}.json", run_id

    def read(self) -> tuple[bool, dict[str, int]]:
        """Whether the last run died, and what it left."""
        try:
            left = unsealed_json(self._store.read(self._name))
            return bool(left["run"]), {str(key): int(count) for key, count in left["begun"].items()}
        except FileNotFoundError:
            return False, {}
        except (BrokenSeal, KeyError, TypeError, ValueError):
            return True, {}  # damaged: the careful reading of it

    def write(self, begun: Mapping[str, int], at_work: bool = True) -> None:
        value = {"run": self._run_id if at_work else "", "begun": dict(begun)}
        self._store.replace(self._name, sealed_json(value))


class Record:
    """The actor: how often each key was begun without having ended."""

    def __init__(self, begun: Mapping[str, int], trace: Trace | None, careful: bool) -> None:
        self._begun, self._deaths = dict(begun), dict(begun)
        self._trace, self._careful = trace, careful
        self._lasting = set(begun)
        self._at_work: dict[str, Place] = {}  # where each lasting key is touched
        self._fallen: dict[str, set[str]] = {}  # by machine, the processes that died since something was ended there

    def deaths(self, keys: Sequence[str]) -> list[int]:
        """Asked by who is about to begin: what is begun now has died."""
        counts = [self._begun.get(key, 0) for key in keys]
        self._deaths.update((key, count) for key, count in zip(keys, counts, strict=True) if count)
        for machine, process in [self._at_work.pop(key) for key in keys if key in self._at_work]:
            self._fallen.setdefault(machine, set()).add(process)
        return counts

    def begin(self, keys: Sequence[str], place: Place | None = None) -> int:
        """`place`: where it is begun, of what the next run is to know too; how many died there before in a row."""
        for key in keys:
            self._begun[key] = self._begun.get(key, 0) + 1
        if place is None:
            return 0
        self._at_work.update(dict.fromkeys(keys, place))
        if self._trace is not None:
            self._lasting.update(keys)
            if self._careful or any(self._begun[key] > 1 for key in keys):
                self._trace.write({key: self._begun[key] for key in self._lasting})
        return len(self._fallen.get(place[0], ()))

    def end(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._begun.pop(key, None)
            self._deaths.pop(key, None)
            self._lasting.discard(key)
            if key in self._at_work:
                self._fallen.pop(self._at_work.pop(key)[0], None)

    def known_deaths(self) -> dict[str, int]:
        """What an orderly end leaves: a key that is at work just then has not died."""
        return {key: count for key, count in self._deaths.items() if key in self._lasting}


class Strikes:
    """A step's side of the record."""

    def __init__(self, begun: Mapping[str, int] | None = None, trace: Trace | None = None, careful: bool = False,
                 hang_s: float | None = None) -> None:  # fmt: skip
        # Should it die itself, it starts again with what it began with.
        actor = beside_driver(Record, max_restarts=-1, max_task_retries=-1)
        self.record: Any = actor.remote(begun or {}, trace, careful)
        self._hang_s = hang_s

    def deaths(self, keys: Sequence[str]) -> list[int]:
        counts: list[int] = ray.get(self.record.deaths.remote(keys))
        return counts

    @contextmanager
    def watching(self, keys: Sequence[str], lasting: bool = False) -> Iterator[None]:
        """`lasting`: the next run is to know, should this one die with it."""
        # Must be on record before anything can happen.
        fallen = ray.get(self.record.begin.remote(keys, _here() if lasting else None))
        try:
            if fallen >= IN_A_ROW:
                raise JobError(_to_blame(_here()[0], fallen))
            with _ended_if_it_hangs(self._hang_s if lasting else None):
                yield
        finally:  # an exception is no death
            self.record.end.remote(keys)

    def close(self) -> None:
        release(self.record)


@contextmanager
def _ended_if_it_hangs(after_s: float | None) -> Iterator[None]:
    """By a thread that needs no turn of the interpreter, which whatever hangs may hold; its stack is in the log."""
    if after_s is not None:
        faulthandler.dump_traceback_later(after_s, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def _here() -> Place:
    return ray.util.get_node_ip_address(), ray.get_runtime_context().get_worker_id()


def _to_blame(machine: str, fallen: int) -> str:
    return (
        f"on {machine} {fallen} captioning processes in a row died or hung without one answer: memory, or its device? "
        "Look at Ray's log of it, or take it out, and run again; --set retry.errors=true for clips blamed meanwhile"
    )


@contextmanager
def lasting_strikes(output_uri: str, fingerprint: str, run_id: str, forget: bool, hang_s: float) -> Iterator[Strikes]:
    """`forget`: what earlier runs died of is tried afresh. What is at work for longer than `hang_s` hangs."""
    trace = Trace(output_uri, fingerprint, run_id)
    died, begun = trace.read()
    begun = {} if forget else begun
    trace.write(begun)
    strikes = Strikes(begun, trace, died, hang_s)
    try:
        yield strikes
    except JobError:  # what broke may be the storage; then the file stays as it is, and the next run is careful
        with hurried(), suppress(JobError):
            _ended(strikes, trace)
        raise
    else:
        _ended(strikes, trace)
    finally:
        strikes.close()


def _ended(strikes: Strikes, trace: Trace) -> None:
    with suppress(ray.exceptions.RayError):  # a cluster that is gone leaves the file as it is
        trace.write(ray.get(strikes.record.known_deaths.remote(), timeout=PARTING_S), at_work=False)
