"""The files of one kind (annotations, errors or selections) of one fingerprint: named, written, read.

OUTPUT/annotations/<fingerprint>/part-000000.parquet
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from mlb_batch.columns import SCHEMA_VERSION
from mlb_batch.errors import OutputError
from mlb_batch.ledger.seal import sealed
from mlb_batch.storage import Store

KINDS = ("annotations", "errors", "selections")
_NAME = re.compile(r"part-(\d{6,})\.parquet")
_READERS = 16


@dataclass(frozen=True)
class Part:
    """One committed file, as far as it was read."""

    seq: int
    schema: pa.Schema
    metadata: dict[str, str]
    rows: pa.Table  # only the columns asked for


def part_name(kind: str, fingerprint: str, seq: int) -> str:
    return f"{kind}/{fingerprint}/part-{seq:06d}.parquet"


def list_seqs(store: Store, kind: str, fingerprint: str) -> list[int]:
    matches = (_NAME.fullmatch(name) for name in store.list(f"{kind}/{fingerprint}"))
    return sorted(int(match[1]) for match in matches if match)


def list_fingerprints(store: Store, kind: str) -> list[str]:
    return [name for name in store.list(kind) if re.fullmatch(r"[0-9a-f]{16}", name)]


def part_bytes(table: pa.Table, seq: int, fingerprint: str, run_id: str, token: str) -> bytes:
    metadata = {
        "mlb_batch.schema_version": str(SCHEMA_VERSION),
        "mlb_batch.fingerprint": fingerprint,
        "mlb_batch.run_id": run_id,
        "mlb_batch.seq": str(seq),
        "mlb_batch.token": token,
    }
    return sealed(table, metadata)


def parse_part(data: bytes, seq: int, columns: Sequence[str] | None) -> Part:
    """ArrowException or OSError where the bytes are no sound Parquet file."""
    file = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True)
    pairs = file.metadata.metadata or {}
    metadata = {key.decode(): value.decode() for key, value in pairs.items() if key.startswith(b"mlb_batch.")}
    return Part(seq, file.schema_arrow, metadata, file.read(columns=None if columns is None else list(columns)))


def read_part(store: Store, kind: str, fingerprint: str, seq: int, columns: Sequence[str]) -> Part:
    name = part_name(kind, fingerprint, seq)
    data = store.read(name)
    try:
        return parse_part(data, seq, columns)
    except (pa.ArrowException, OSError, ValueError) as error:
        said = str(error).splitlines()[0]
        remedy = f"run `mlb-batch verify {store.uri}`; once the file is deleted, the same run computes its rows again"
        raise OutputError(f"{store.uri}/{name} is damaged ({said}): {remedy}") from None


def read_parts(
    store: Store, kind: str, fingerprint: str, seqs: Sequence[int], columns: Sequence[str]
) -> Iterator[Part]:
    """In order, several at a time: a resume is bound by round trips, not by bytes."""
    with ThreadPoolExecutor(_READERS) as readers:
        for start in range(0, len(seqs), _READERS):
            chunk = seqs[start : start + _READERS]
            yield from readers.map(lambda seq: read_part(store, kind, fingerprint, seq, columns), chunk)
