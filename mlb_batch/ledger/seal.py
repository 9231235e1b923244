"""A Parquet file that holds the SHA-256 of itself.

Page checksums cover pages, not the footer. So the digest is taken over the whole file with a blank in its place, and
then written into that place; whoever checks puts the blank back and counts again.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.parquet as pq

_KEY = "mlb_batch.sha256"
_BLANK = b"0" * 64
# How the footer (Thrift, compact) writes a key followed by a value of 64 bytes: a string field, then its length.
_BEFORE = _KEY.encode() + b"\x18\x40"


class BrokenSeal(Exception):
    """The bytes aren't those that were written."""


def sealed(table: pa.Table, metadata: Mapping[str, str]) -> bytes:
    """The table as a whole Parquet file, with the metadata among its key-value pairs."""
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, table.schema, compression="zstd", write_page_checksum=True) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({**metadata, _KEY: _BLANK.decode()})
    data = bytearray(buffer.getvalue())
    at = _digest_at(data)
    data[at : at + len(_BLANK)] = hashlib.sha256(data).hexdigest().encode()
    return bytes(data)


def check_seal(data: bytes) -> None:
    at = _digest_at(data)
    digest = data[at : at + len(_BLANK)]
    blanked = hashlib.sha256(data[:at])
    blanked.update(_BLANK)
    blanked.update(data[at + len(_BLANK) :])
    if blanked.hexdigest().encode() != digest:
        raise BrokenSeal("its bytes are not those that were written (checksum differs)")


def _digest_at(data: bytes | bytearray) -> int:
    # The footer comes last, so the last match is its own, whatever a caption says.
    at = data.rfind(_BEFORE)
    if at < 0:
        raise BrokenSeal("it holds no checksum: damaged, or not written by this project")
    return at + len(_BEFORE)
