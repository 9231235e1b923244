"""The files of one kind (annotations, errors or selections) of one fingerprint: named, listed, read.

OUTPUT/annotations/<fingerprint>/part-000000.parquet          as a run committed it: one number
OUTPUT/annotations/<fingerprint>/part-000000-000057.parquet   as a compaction merged it: it stands for all these numbers

No name is ever given two contents. A file whose numbers lie within those of another is void: it is in that other one,
or it was written too late by a run that had lost its lease. Whoever lists sees that by the names alone.
"""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from mlb_batch.columns import SCHEMA_VERSION
from mlb_batch.errors import OutputError
from mlb_batch.ledger.seal import OURS, BrokenSeal, check_seal, sealed
from mlb_batch.storage import Store
from mlb_batch.threads import Threads

KINDS = ("annotations", "errors", "selections")
UNREPEATED = "selections"  # recorded with their answers: what is lost of them nothing brings back
ELSEWHERE = "it belongs to another place or fingerprint"
_NAME = re.compile(r"part-(\d{6,})(?:-(\d{6,}))?\.parquet")
FILES_AT_ONCE, BYTES_AT_ONCE = 16, 64 * 2**20
ROWS_AT_ONCE = 10_000
_TRIES, _EXCHANGE_S = 5, 2.0

T = TypeVar("T")


@dataclass(frozen=True, order=True)
class Seqs:
    """The numbers that one file stands for."""

    first: int
    last: int

    @staticmethod
    def one(number: int) -> Seqs:
        return Seqs(number, number)

    @property
    def merged(self) -> bool:
        return self.first < self.last

    @property
    def file_name(self) -> str:
        return f"part-{self}.parquet"

    def __str__(self) -> str:
        return f"{self.first:06d}-{self.last:06d}" if self.merged else f"{self.first:06d}"


@dataclass(frozen=True)
class Part:
    """One committed file, as far as it was read."""

    seqs: Seqs
    schema: pa.Schema
    metadata: dict[str, str]  # what it says of itself, see `part_bytes`
    rows: pa.Table  # only the columns asked for

    def is_of(self, fingerprint: str) -> bool:
        """Whether it and its rows say that they are where they belong. It was read with all its columns."""
        ours = self.of == (fingerprint, str(self.seqs))
        return ours and set(self.rows["fingerprint"].unique().to_pylist()) <= {fingerprint}

    @property
    def of(self) -> tuple[str | None, str | None]:
        """The fingerprint and the numbers that it says it was written for."""
        return self.metadata.get("fingerprint"), self.metadata.get("seq")


def folder_name(kind: str, fingerprint: str) -> str:
    return f"{kind}/{fingerprint}"


def part_name(kind: str, fingerprint: str, seqs: Seqs) -> str:
    return f"{folder_name(kind, fingerprint)}/{seqs.file_name}"


def parse_name(name: str) -> Seqs | None:
    """The numbers that a file's name (without its folder) says; None where it is no part's name."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    seqs = Seqs(int(match[1]), int(match[2] or match[1]))
    return seqs if seqs.file_name == name else None


def standing(every: Iterable[Seqs]) -> list[Seqs]:
    """Those that are not void, in order."""
    found: list[Seqs] = []
    for seqs in sorted(every, key=lambda one: (one.first, -one.last)):
        if not found or seqs.last > found[-1].last:
            found.append(seqs)
    return found


def list_all(store: Store, kind: str, fingerprint: str) -> list[Seqs]:
    """Void ones too."""
    return [seqs for name in store.list(folder_name(kind, fingerprint)) if (seqs := parse_name(name)) is not None]


def list_seqs(store: Store, kind: str, fingerprint: str) -> list[Seqs]:
    return standing(list_all(store, kind, fingerprint))


def list_fingerprints(store: Store, kind: str) -> list[str]:
    return [name for name in store.list(kind) if re.fullmatch(r"[0-9a-f]{16}", name)]


def row_keys(rows: pa.Table, kind: str) -> list[bytes]:
    """What may stand once: an annotation, an attempt that failed, a cut of a selection."""
    ids: Sequence[str] = rows["annotation_id"].to_pylist()
    again = {"errors": "attempt", "selections": "layer"}
    numbers = rows[again[kind]].to_pylist() if kind in again else [0] * len(ids)
    return [bytes.fromhex(one) + number.to_bytes(4, "big") for one, number in zip(ids, numbers, strict=True)]


def part_bytes(tables: Iterable[pa.Table], schema: pa.Schema, seqs: Seqs, fingerprint: str, run_id: str,
               token: str) -> bytes:  # fmt: skip
    metadata = {
        "schema_version": str(SCHEMA_VERSION),
        "fingerprint": fingerprint,
        "run_id": run_id,
        "seq": str(seqs),
        "token": token,
    }
    return sealed(tables, schema, {f"{OURS}{key}": value for key, value in metadata.items()})


def sound_part(data: bytes, seqs: Seqs) -> Part:
    """With all its columns; BrokenSeal where not every byte is as it was written."""
    check_seal(data)
    return _parsed(data, seqs, None)


def _parsed(data: bytes, seqs: Seqs, columns: Sequence[str] | None) -> Part:
    """BrokenSeal where the bytes are no sound Parquet file."""
    try:
        file = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True)
        ours = [pair for pair in (file.metadata.metadata or {}).items() if pair[0].startswith(OURS.encode())]
        metadata = {key.decode().removeprefix(OURS): value.decode() for key, value in ours}
        rows = file.read(columns=None if columns is None else list(columns))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise BrokenSeal(str(error).splitlines()[0]) from None
    return Part(seqs, file.schema_arrow, metadata, rows)


def read_part(store: Store, kind: str, fingerprint: str, seqs: Seqs, columns: Sequence[str]) -> Part:
    name = part_name(kind, fingerprint, seqs)
    data = store.read(name)
    try:
        part = _parsed(data, seqs, columns)
        if not set(columns) <= set(part.schema.names):
            raise OutputError(f"{store.uri}/{name} was not written by this project: move it elsewhere")
        check_seal(data)  # the checksums in it spare the pages' headers, whose damage can make rows vanish
    except BrokenSeal as error:
        then = "goes on without its rows" if kind == UNREPEATED else "computes its rows again"
        remedy = f"run `mlb-batch verify {store.uri}`; once the file is deleted, the same run {then}"
        raise OutputError(f"{store.uri}/{name} is damaged ({error}): {remedy}") from None
    if part.of != (fingerprint, str(seqs)):
        raise OutputError(f"{store.uri}/{name}: {ELSEWHERE}; run `mlb-batch verify {store.uri}`")
    return part


def undisturbed(read: Callable[[], T]) -> T:
    """What a reading of many files gives; read again where a compaction exchanged the files meanwhile."""
    for _ in range(_TRIES):
        try:
            return read()
        except FileNotFoundError:
            time.sleep(_EXCHANGE_S)
    raise OutputError("the files go while they are read: a compaction is at work; try again when it has ended")


def read_parts(
    store: Store, kind: str, fingerprint: str, seqs: Sequence[Seqs], columns: Sequence[str]
) -> Iterator[Part]:
    """In order, a handful at a time."""
    with Threads(FILES_AT_ONCE) as readers:
        for some in handfuls(store, kind, fingerprint, seqs):
            yield from readers.map(lambda one: read_part(store, kind, fingerprint, one, columns), some)


def handfuls(store: Store, kind: str, fingerprint: str, seqs: Sequence[Seqs]) -> Iterator[list[Seqs]]:
    """What to read at once: many small files, which are bound by round trips, but of large ones, which are bound by
    bytes, no more than there is always memory for.
    """
    sizes = store.sizes(folder_name(kind, fingerprint)) if len(seqs) > 1 else {}
    some: list[Seqs] = []
    num_bytes = 0
    for one in seqs:
        size = sizes.get(one.file_name, 0)  # 0: it has gone meanwhile
        if some and (len(some) == FILES_AT_ONCE or num_bytes + size > BYTES_AT_ONCE):
            yield some
            some, num_bytes = [], 0
        some, num_bytes = [*some, one], num_bytes + size
    if some:
        yield some


def rows_of(store: Store, kind: str, fingerprint: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    """These columns of all committed rows of one fingerprint, a file at a time."""
    seqs = list_seqs(store, kind, fingerprint)
    return (part.rows for part in read_parts(store, kind, fingerprint, seqs, columns))


def as_python(rows: pa.Table) -> Iterator[dict[str, Any]]:
    """Some at a time: as Python's objects they take ten times the memory."""
    for some in rows.to_batches(max_chunksize=ROWS_AT_ONCE):
        yield from some.to_pylist()


def written_columns(store: Store, fingerprint: str) -> pa.Schema:
    """The columns of the annotations that are committed; none where nothing is."""
    seqs = list_seqs(store, "annotations", fingerprint)[:1]
    return next((part.schema for part in read_parts(store, "annotations", fingerprint, seqs, [])), pa.schema([]))
