"""Merges small files of every fingerprint towards a target size, under readers that are at work.

Decision record: how files are exchanged
----------------------------------------
A storage changes one file at a time, and a plain reader lists first and reads then. So rows can't move from one file
into another unseen: in between, some listing shows them twice or not at all, and whoever listed before finds files
gone. What can be one step is the change of one small file that says what to read. So there are two promises:

- Whoever reads the files that current.json names gets every row once, at every moment, and finds every file, if it is
  done within the grace time.
- Whoever reads annotations/<fingerprint>/ without asking gets every row once or an error, never a wrong answer; an
  error only while the files are being exchanged, which takes a moment. Otherwise the folder is right, as ever.

The way: the merged files are written to compacting/, where nobody looks. current.json is pointed at them (with the
files that stay): the readers' one step. After the grace time nobody reads the old files any more, and they are
exchanged: a last file that can't be read shuts the folder, the merged files are created, the old ones deleted, and the
shut is taken away. current.json is pointed back, and after another grace time compacting/ is emptied.

Why a plain read errs rather than lies: no name is ever given two contents. A listing from before holds old files
only, which are as they were or gone; one from after holds new files only; one in between holds the file that can't be
read; and in one that is taken in several pages, the last page holds that file or the first page names files that are
gone by now. Folders named by generation were weighed: there a reader of a fixed path ends up with nothing, one of all
of annotations/ sees rows twice until the old generation goes, and every compaction copies everything.

A merged file is named by the numbers that it stands for, and the files of these numbers are void from its creation on
(see parts.py): so the ledger is right whenever a compaction is killed, and `tidy`, which every run and compaction
begins with, only sweeps up. A compaction holds the lease; unlike a run's commit, it rests on it.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any

import pyarrow as pa

from mlb_batch.errors import JobError, OutputError
from mlb_batch.ledger.lease import Lease
from mlb_batch.ledger.parts import (
    ELSEWHERE,
    FILES_AT_ONCE,
    KINDS,
    Part,
    Seqs,
    folder_name,
    handfuls,
    list_all,
    list_fingerprints,
    list_seqs,
    parse_name,
    part_bytes,
    part_name,
    row_keys,
    sound_part,
    standing,
)
from mlb_batch.ledger.records import Records, total, write_record
from mlb_batch.ledger.runs import in_place, newest_first, point, read_current
from mlb_batch.ledger.seal import BrokenSeal
from mlb_batch.storage import Store, open_store
from mlb_batch.threads import Threads

STAGE = "compacting"
SHUT = "zz-being-compacted.parquet"  # sorts after every part
NOTE = (
    b"These files are being exchanged. Read the files that current.json names; if nothing is at work here, run "
    b"`mlb-batch compact` once more to finish what was cut off.\n"
)
ROW_GROUP_BYTES = 64 * 2**20
LEASE_LOOK_S = 5.0


@dataclass(frozen=True)
class Merge:
    """Neighbouring files that become one."""

    kind: str
    fingerprint: str
    sources: tuple[Seqs, ...]

    @property
    def seqs(self) -> Seqs:
        return Seqs(self.sources[0].first, self.sources[-1].last)

    def staged(self, run_id: str) -> str:
        return f"{STAGE}/{run_id}.{self.kind}.{self.fingerprint}.part-{self.seqs}.parquet"


@dataclass(frozen=True)
class Compacted:
    """What a compaction did."""

    run_id: str
    files_before: int
    files_after: int
    merged: int  # new files


def compact(output_uri: str, run_id: str, target_mb: int, grace_s: float) -> Compacted:
    """OutputError where a run is at work, or where a file is damaged; then nothing is changed."""
    store = open_store(output_uri)
    if not _folders(store):
        raise OutputError(f"{output_uri}: no annotations are here; is it the output.uri of a job that has run?")
    with Lease(output_uri, run_id) as lease:
        current = read_current(output_uri)
        tidy(output_uri)
        _sweep(store)  # also what a run wrote too late
        records = Records(record for _, record in newest_first(store, "ledger"))
        before = sum(len(list_seqs(store, *folder)) for folder in _folders(store))
        merges = list(_planned(store, target_mb * 2**20))
        for merge in merges:
            _stage(store, merge, run_id)
        moved = _as_moved(store, current, merges, run_id)
        if moved is not None:
            point(store, moved[1])
            _wait(lease, grace_s)
        for kind, fingerprint in _folders(store):
            _exchange(store, [m for m in merges if (m.kind, m.fingerprint) == (kind, fingerprint)], run_id, lease)
        if merges:
            _record(store, records, {merge.fingerprint for merge in merges}, run_id)
        if moved is not None:
            point(store, in_place(moved[0]))
            _wait(lease, grace_s)
        _delete(store, (merge.staged(run_id) for merge in merges))
    return Compacted(run_id, before, before - sum(len(m.sources) - 1 for m in merges), len(merges))


def tidy(output_uri: str) -> None:
    """Sweep up after a compaction that was killed. Only for who holds the lease."""
    store = open_store(output_uri)
    staged = {f"{STAGE}/{name}" for name in store.list(STAGE)}
    try:
        current = read_current(output_uri)
        files = current.get("files", {}) if current else {}
        pointed = {name for names in files.values() for name in names if name.startswith(STAGE)}
    except OutputError:
        # Who reads on despite its seal may need them; the run that is about to begin writes it anew.
        current, pointed = None, staged
    if not staged and not pointed:  # they are deleted last, but for who deletes them by hand
        return
    _sweep(store)
    if current:
        point(store, in_place(current["fingerprint"]))
    # Someone may still be reading those that current.json named until now: they are left to the next sweep.
    _delete(store, staged - pointed)


def _sweep(store: Store) -> None:
    """Every folder without void files, and open."""
    for kind, fingerprint in _folders(store):
        every = list_all(store, kind, fingerprint)
        void = set(every) - set(standing(every))
        _delete(store, (part_name(kind, fingerprint, seqs) for seqs in void))
        store.delete(f"{folder_name(kind, fingerprint)}/{SHUT}")


def _folders(store: Store) -> list[tuple[str, str]]:
    return [(kind, fingerprint) for kind in KINDS for fingerprint in list_fingerprints(store, kind)]


def _planned(store: Store, target: int) -> Iterator[Merge]:
    for kind, fingerprint in _folders(store):
        sizes = {seqs: size for name, size in store.sizes(folder_name(kind, fingerprint)).items()
                 if (seqs := parse_name(name)) is not None}  # fmt: skip
        there = [(seqs, sizes[seqs]) for seqs in standing(sizes)]
        yield from (Merge(kind, fingerprint, sources) for sources in _groups(there, target))


def _groups(files: Iterable[tuple[Seqs, int]], target: int) -> Iterator[tuple[Seqs, ...]]:
    """Neighbours that fit into one file. One of half the size stays: rewriting it would gain little, again and again.

    Over a number that is missing nothing is merged: that a file was lost must go on showing.
    """
    group: list[Seqs] = []
    size = 0
    for seqs, num_bytes in files:
        big = num_bytes > target / 2
        if group and (big or size + num_bytes > target or group[-1].last + 1 != seqs.first):
            yield from _worth(group)
            group, size = [], 0
        if not big:
            group, size = [*group, seqs], size + num_bytes
    yield from _worth(group)


def _worth(group: Sequence[Seqs]) -> Iterator[tuple[Seqs, ...]]:
    if len(group) > 1:
        yield tuple(group)


def _stage(store: Store, merge: Merge, run_id: str) -> None:
    """Write the merged file where nobody looks, from sources whose bytes are those that were written."""
    parts = _sources(store, merge)
    first = next(parts)
    tables = _row_groups(_alike(store, merge, first.schema, chain([first], parts)))
    schema = first.schema.remove_metadata()
    data = part_bytes(tables, schema, merge.seqs, merge.fingerprint, run_id, uuid.uuid4().hex)
    store.replace(merge.staged(run_id), data)


def _sources(store: Store, merge: Merge) -> Iterator[Part]:
    with Threads(FILES_AT_ONCE) as readers:
        for some in handfuls(store, merge.kind, merge.fingerprint, merge.sources):
            yield from readers.map(lambda seqs: _read_sound(store, merge, seqs), some)


def _alike(store: Store, merge: Merge, schema: pa.Schema, parts: Iterable[Part]) -> Iterator[pa.Table]:
    """Their rows, which are of one schema and stand once."""
    folder, keys, num_rows = folder_name(merge.kind, merge.fingerprint), set[bytes](), 0
    for part in parts:
        if part.schema != schema:
            raise OutputError(f"{store.uri}/{folder}: its files have different columns")
        keys.update(row_keys(part.rows, merge.kind))
        num_rows += part.rows.num_rows
        if len(keys) < num_rows:
            raise _damaged(store, folder, "rows stand twice")
        yield part.rows


def _read_sound(store: Store, merge: Merge, seqs: Seqs) -> Part:
    name = part_name(merge.kind, merge.fingerprint, seqs)
    try:
        part = sound_part(store.read(name), seqs)
    except (BrokenSeal, OSError) as error:
        raise _damaged(store, name, str(error)) from None
    if not part.is_of(merge.fingerprint):
        raise _damaged(store, name, ELSEWHERE)
    return part


def _damaged(store: Store, name: str, said: str) -> OutputError:
    return OutputError(f"{store.uri}/{name}: {said}; nothing was merged: run `mlb-batch verify {store.uri}` first")


def _row_groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Few and large, in order: a reader's work is by the row group."""
    waiting: list[pa.Table] = []
    num_bytes = 0
    for table in tables:
        waiting.append(table)
        num_bytes += table.nbytes
        if num_bytes >= ROW_GROUP_BYTES:
            yield pa.concat_tables(waiting).replace_schema_metadata()
            waiting, num_bytes = [], 0
    if waiting:
        yield pa.concat_tables(waiting).replace_schema_metadata()


def _as_moved(
    store: Store, current: Mapping[str, Any] | None, merges: Sequence[Merge], run_id: str
) -> tuple[str, Mapping[str, Sequence[str]]] | None:
    """The current fingerprint, and what its readers read while its files are exchanged; None: they aren't."""
    if current is None or current["fingerprint"] not in {merge.fingerprint for merge in merges}:
        return None
    fingerprint: str = current["fingerprint"]
    files = in_place(fingerprint)
    for kind in KINDS:
        ours = [merge for merge in merges if (merge.kind, merge.fingerprint) == (kind, fingerprint)]
        if ours:
            gone = {seqs for merge in ours for seqs in merge.sources}
            stay = [one for one in list_seqs(store, kind, fingerprint) if one not in gone]
            files[kind] = [*(part_name(kind, fingerprint, one) for one in stay), *(m.staged(run_id) for m in ours)]
    return fingerprint, files


def _wait(lease: Lease, grace_s: float) -> None:
    until_s = time.monotonic() + grace_s
    while (left_s := until_s - time.monotonic()) > 0:
        time.sleep(min(left_s, LEASE_LOOK_S))
        lease.check()


def _exchange(store: Store, merges: Sequence[Merge], run_id: str, lease: Lease) -> None:
    """In one folder: shut it, create the merged files, delete what they stand for, open it."""
    if not merges:
        return
    shut = f"{folder_name(merges[0].kind, merges[0].fingerprint)}/{SHUT}"
    lease.check()
    store.replace(shut, NOTE)
    for merge in merges:
        name = part_name(merge.kind, merge.fingerprint, merge.seqs)
        data = store.read(merge.staged(run_id))
        lease.check()
        store.create(name, data)
        if store.read(name) != data:  # the only copy is about to be deleted
            raise JobError(f"{store.uri}/{name}: what was written can't be read back; nothing was deleted")
    _delete(store, (part_name(m.kind, m.fingerprint, seqs) for m in merges for seqs in m.sources))
    store.delete(shut)


def _record(store: Store, records: Records, fingerprints: Iterable[str], run_id: str) -> None:
    """Rows are those of the record before: a compaction has none of its own, and must not hide that some are lost."""
    totals = {
        fingerprint: {
            kind: total(before["rows"], list_seqs(store, kind, fingerprint), before)
            for kind in KINDS
            if (before := records.of(kind, fingerprint))
        }
        for fingerprint in fingerprints
    }
    recorded = {fingerprint: kinds for fingerprint, kinds in totals.items() if kinds}
    write_record(store, run_id, records.next_turn, recorded)


def _delete(store: Store, names: Iterable[str]) -> None:
    delete: Callable[[str], None] = store.delete
    with ThreadPoolExecutor(FILES_AT_ONCE) as hands:  # waited for by who is stopped too: none is to outlive the lease
        list(hands.map(delete, names))
