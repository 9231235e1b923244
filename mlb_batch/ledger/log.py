"""The log of one fingerprint: what is done, what failed so far, and the commit of new rows."""

from __future__ import annotations

import datetime
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa

from mlb_batch.columns import SCHEMA_VERSION, STAMPED, annotation_schema, error_schema, selection_schema, to_table
from mlb_batch.errors import JobError, OutputError
from mlb_batch.ledger.ids import DoneIds
from mlb_batch.ledger.lease import Lease
from mlb_batch.ledger.parts import (
    KINDS,
    UNREPEATED,
    Part,
    Seqs,
    as_python,
    list_fingerprints,
    list_seqs,
    part_bytes,
    part_name,
    read_part,
    read_parts,
)
from mlb_batch.ledger.records import Records, absent_numbers, missing, read_records, total, write_record
from mlb_batch.ledger.runs import publish
from mlb_batch.spec_parts import RetrySpec
from mlb_batch.storage import Store, open_store

Row = Mapping[str, Any]
# A lease that was ours a moment ago can't be another's as soon as this (see lease.py); a create that took longer looks
# again at what stands.
ASLEEP_S = 10.0


@dataclass(frozen=True)
class Attempt:
    """How often an unresolved annotation was tried, over all runs, and whether once more may help."""

    attempts: int
    retryable: bool


def pending(attempt: Attempt | None, retry: RetrySpec) -> bool:
    """Whether an annotation that isn't done is to be tried (again)."""
    if attempt is None or retry.errors:
        return True
    return attempt.retryable and attempt.attempts < retry.attempts


class Ledger:
    """All that is committed for one fingerprint; the one writer of its rows."""

    def __init__(
        self,
        output_uri: str,
        fingerprint: str,
        run_id: str,
        passthrough: pa.Schema | None = None,
        *,
        lease: Lease | None = None,
        target_file_mb: int = 256,
    ) -> None:
        """Opens the log (reads what is committed); OutputError where another schema wrote it."""
        self._store = open_store(output_uri)
        self.fingerprint, self.run_id = fingerprint, run_id
        self._lease = lease
        self._done = DoneIds()
        self._attempts: dict[str, Attempt] = {}
        self._selected: set[tuple[str, int]] = set()
        _refuse_other_versions(self._store)
        size, told = target_file_mb * 2**20, read_records(self._store)
        self._turn = told.next_turn
        schema = annotation_schema(passthrough if passthrough is not None else pa.schema([]))
        failed, cut = ("annotation_id", "retryable", "attempt"), ("annotation_id", "layer")
        kinds = (  # annotations first: what is done is known before what failed
            _Kind("annotations", schema, ("annotation_id",), self._learn_done, self._new_annotations),
            _Kind("errors", error_schema(), failed, self._learn_errors, self._new_errors),
            _Kind("selections", selection_schema(), cut, self._learn_selections, self._new_selections),
        )
        self._logs = tuple(_Log(self._store, self, kind, size, told) for kind in kinds)
        self._annotations, self._errors, self._selections = self._logs

    def done(self) -> DoneIds:
        return self._done.copy()

    def attempts(self) -> Mapping[str, Attempt]:
        """By annotation id: what has failed so far and isn't annotated."""
        return self._attempts

    def totals(self) -> dict[str, dict[str, Any]]:
        """Files and rows that are committed, by kind, and which files of several numbers are among them."""
        return {log.kind.name: total(log.num_rows, log.files, log.told) for log in self._logs}

    @property
    def gone(self) -> str:
        """What is to be said where files that were committed weren't there: nobody may look with `verify` in time."""
        gone = [(log.kind.name, name) for log in self._logs for name in log.gone]
        if not gone:
            return ""
        kind, name = gone[0]
        more = f", and {len(gone) - 1:,} more" if len(gone) > 1 else ""
        lost = "the answers stand, and nothing brings back which tokens were kept"
        then = lost if kind == UNREPEATED else "what it held is made again where the input still has it"
        return f"a file that was committed is gone: {self._store.uri}/{name}{more}; {then}"

    def rows(self, columns: Sequence[str]) -> Iterator[Row]:
        """These columns of all committed annotations, as Python's numbers: the FLOPs of many don't fit in 64 bits."""
        for part in read_parts(self._store, "annotations", self.fingerprint, self._annotations.files, columns):
            yield from as_python(part.rows)

    def commit(self, annotations: Sequence[Row], errors: Sequence[Row], selections: Sequence[Row] = ()) -> int:
        """Write the rows that aren't there yet, durably; returns how many of annotations and errors were written.

        Rows have all columns but the stamped ones (schema_version, fingerprint, run_id, created_at).
        JobError where the storage is gone or the lease is lost.
        """
        # Selections first: what is cut off between the two files is made again with its annotation, and found here.
        selected = self._selections.append(selections)
        written = self._annotations.append(annotations)
        written += self._errors.append(errors)
        if written or selected:
            self._record()
        return written

    def fill_gaps(self) -> None:
        """Give the numbers of deleted files to empty ones, once their rows are there again (or are wanted no more).

        Until then they are left free, so that `verify` goes on naming them.
        """
        self.check_lease()
        if sum(log.fill_gaps() for log in self._logs):
            self._record()

    def publish(self) -> None:
        """All that was asked for is here: readers are sent to it."""
        self.fill_gaps()
        publish(self._store.uri, self.fingerprint, self.run_id)

    def _record(self) -> None:
        """Not part of the commit: it lets `verify`, and later runs, see that the last files were deleted."""
        write_record(self._store, self.run_id, self._turn, {self.fingerprint: self.totals()})

    def check_lease(self) -> None:
        if self._lease is not None:
            self._lease.check()

    def _learn_done(self, rows: pa.Table) -> None:
        ids = rows["annotation_id"].to_pylist()
        self._done.update(ids)
        for one in ids:
            self._attempts.pop(one, None)

    def _learn_errors(self, rows: pa.Table) -> None:
        for row in as_python(rows):
            before = self._attempts.get(row["annotation_id"])
            if row["annotation_id"] not in self._done and (before is None or before.attempts < row["attempt"]):
                self._attempts[row["annotation_id"]] = Attempt(row["attempt"], row["retryable"])

    def _learn_selections(self, rows: pa.Table) -> None:
        self._selected.update(zip(rows["annotation_id"].to_pylist(), rows["layer"].to_pylist(), strict=True))

    def _new_selections(self, rows: Sequence[Row]) -> list[Row]:
        new = {(row["annotation_id"], row["layer"]): row for row in rows}
        return [row for key, row in new.items() if key not in self._selected]

    def _new_annotations(self, rows: Sequence[Row]) -> list[Row]:
        return list({row["annotation_id"]: row for row in rows if row["annotation_id"] not in self._done}.values())

    def _new_errors(self, rows: Sequence[Row]) -> list[Row]:
        """One row an attempt, and none for what is annotated."""
        new = {}
        for row in rows:
            before = self._attempts.get(row["annotation_id"])
            known = before is not None and row["attempt"] <= before.attempts
            if not known and row["annotation_id"] not in self._done:
                new[row["annotation_id"], row["attempt"]] = row
        return list(new.values())


@dataclass(frozen=True)
class _Kind:
    """What the rows of one kind are, and what the ledger knows of them."""

    name: str
    schema: pa.Schema
    columns: Sequence[str]  # those that are learned
    learn: Callable[[pa.Table], None]
    new: Callable[[Sequence[Row]], list[Row]]  # of some rows those that aren't there yet


class _Log:
    """The files of one kind; every one of them was read before the next is written."""

    def __init__(self, store: Store, ledger: Ledger, kind: _Kind, most_bytes: int, told: Records) -> None:
        self.kind, self.num_rows = kind, 0
        self._store, self._ledger, self._most_bytes = store, ledger, most_bytes
        self.files: list[Seqs] = []
        name, fingerprint = kind.name, ledger.fingerprint
        for part in read_parts(store, name, fingerprint, list_seqs(store, name, fingerprint), kind.columns):
            self._take_in(part)
        self.told = told.of(name, fingerprint)
        self.gone = [part_name(name, fingerprint, seqs) for seqs in missing(self.files, self.told)]

    def append(self, rows: Sequence[Row]) -> int:
        return sum(map(self._append_file, self._by_size(self.kind.new(rows))))

    def fill_gaps(self) -> bool:
        """Whether what was recorded is not so any more."""
        gaps = list(absent_numbers(self.files, self.told))
        for seqs in gaps:
            self._create(seqs, [], uuid.uuid4().hex)
        return bool(gaps) or self.told.get("rows", 0) > self.num_rows

    def _append_file(self, rows: Sequence[Row]) -> int:
        token = uuid.uuid4().hex
        while rows := self.kind.new(rows):
            self._ledger.check_lease()
            # Never a deleted file's number: of two runs that write at once, one then could not see the other's.
            number = 1 + max([self.told.get("last", -1), *(seqs.last for seqs in self.files)])
            if self._create(Seqs.one(number), rows, token):
                return len(rows)
        return 0

    def _create(self, seqs: Seqs, rows: Sequence[Row], token: str) -> bool:
        """Whether the file of this name is ours now; either way what stands there has been read."""
        ledger, begun_s = self._ledger, time.monotonic()
        data = part_bytes([self._table(rows)], self.kind.schema, seqs, ledger.fingerprint, ledger.run_id, token)
        created = self._store.create(part_name(self.kind.name, ledger.fingerprint, seqs), data)
        if time.monotonic() - begun_s > ASLEEP_S:
            self._withdraw_if_void(seqs)
        there = read_part(self._store, self.kind.name, ledger.fingerprint, seqs, self.kind.columns)
        self._take_in(there)
        return created or there.metadata.get("token") == token  # the second: the answer got lost

    def _withdraw_if_void(self, seqs: Seqs) -> None:
        """A run that slept may wake after others have written more and merged it: then this number was free again."""
        if seqs not in list_seqs(self._store, self.kind.name, self._ledger.fingerprint):
            self._store.delete(part_name(self.kind.name, self._ledger.fingerprint, seqs))
            raise JobError(
                f"{self._store.uri}: while this run was stopped, others wrote here and compacted; what is committed "
                "stays, run the same command again"
            )

    def _take_in(self, part: Part) -> None:
        ours, theirs = self.kind.schema, part.schema
        if theirs != ours:
            differ = _differences(ours, theirs) or ["their order"]
            raise OutputError(
                f"{self._store.uri}: its {self.kind.name} were written with other columns ({', '.join(differ)}); "
                "use another output, or the input.columns and the input types of then"
            )
        self.files.append(part.seqs)
        self.num_rows += part.rows.num_rows
        self.kind.learn(part.rows)

    def _table(self, rows: Sequence[Row]) -> pa.Table:
        stamps = {
            "schema_version": SCHEMA_VERSION,
            "fingerprint": self._ledger.fingerprint,
            "run_id": self._ledger.run_id,
            "created_at": _now(),
        }
        stamps = {name: value for name, value in stamps.items() if name in self.kind.schema.names}
        assert all(STAMPED.isdisjoint(row) for row in rows), "a row comes with columns that the ledger stamps"
        return to_table([{**row, **stamps} for row in rows], self.kind.schema)

    def _by_size(self, rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
        """Halves of halves, until the uncompressed size of each stays within a file's, or it is a row alone."""
        if len(rows) > 1 and self._table(rows).nbytes > self._most_bytes:
            yield from self._by_size(rows[: len(rows) // 2])
            yield from self._by_size(rows[len(rows) // 2 :])
        elif rows:
            yield rows


def _differences(ours: pa.Schema, theirs: pa.Schema) -> list[str]:
    """Each column of which one side has none, or one of another type."""
    then, now = ({field.name: field.type for field in schema} for schema in (theirs, ours))
    names = [name for name in sorted({*then, *now}) if then.get(name) != now.get(name)]
    return [f"{name}: {then.get(name, 'none')} then, {now.get(name, 'none')} now" for name in names]


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _refuse_other_versions(store: Store) -> None:
    """One file of a kind is enough: since every writer refuses to mix, all were written by one version."""
    for kind in KINDS:
        every = ((one, seqs) for one in list_fingerprints(store, kind) for seqs in list_seqs(store, kind, one))
        for fingerprint, seqs in islice(every, 1):
            version = read_part(store, kind, fingerprint, seqs, []).metadata.get("schema_version")
            if version != str(SCHEMA_VERSION):
                written = f"{kind} were written with schema version {version}, this is {SCHEMA_VERSION}"
                raise OutputError(f"{store.uri}: {written}; use another output")
