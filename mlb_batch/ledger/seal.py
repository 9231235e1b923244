"""Files that hold the SHA-256 of themselves: Parquet, and the JSON and YAML beside it.

Page checksums cover pages, not the footer, and JSON has none. So the digest is taken over the whole file with a blank
in its place, and then written into that place; whoever checks puts the blank back and counts again.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

OURS = "mlb_batch."  # what our keys begin with among those of a Parquet file
SHA256 = "sha256"
_KEY = f"{OURS}{SHA256}"
_BLANK = b"0" * 64
# How the footer (Thrift, compact) writes a key followed by a value of 64 bytes: a string field, then its length.
_IN_PARQUET = _KEY.encode() + b"\x18\x40"
_IN_JSON = f'"{SHA256}": "'.encode()
_IN_YAML = f"# {SHA256}: ".encode()


class BrokenSeal(Exception):
    """The bytes aren't those that were written."""


def sealed(tables: Iterable[pa.Table], schema: pa.Schema, metadata: Mapping[str, str]) -> bytes:
    """The tables as a whole Parquet file, each a row group, with the metadata among its key-value pairs."""
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, schema, compression="zstd", write_page_checksum=True) as writer:
        for table in tables:
            writer.write_table(table)
        writer.add_key_value_metadata({**metadata, _KEY: _BLANK.decode()})
    return _with_digest(buffer.getvalue(), _IN_PARQUET)


def sealed_json(value: Mapping[str, Any]) -> bytes:
    assert SHA256 not in value
    text = json.dumps({**value, SHA256: _BLANK.decode()}, indent=1)
    return _with_digest(text.encode(), _IN_JSON)


def sealed_yaml(text: str) -> bytes:
    """The digest stands in a comment at the end."""
    return _with_digest(b"%s\n%s%s\n" % (text.rstrip("\n").encode(), _IN_YAML, _BLANK), _IN_YAML)


def check_seal(data: bytes) -> None:
    """Of a Parquet file."""
    _check(data, _IN_PARQUET)


def unsealed_json(data: bytes) -> dict[str, Any]:
    """What `sealed_json` was given; BrokenSeal where the bytes are others."""
    _check(data, _IN_JSON)
    value: dict[str, Any] = json.loads(data)
    del value[SHA256]
    return value


def check_text_seal(data: bytes, name: str) -> None:
    """Of a .json or .yaml file."""
    _check(data, _IN_YAML if name.endswith(".yaml") else _IN_JSON)


def _with_digest(blank: bytes, mark: bytes) -> bytes:
    data = bytearray(blank)
    at = _digest_at(data, mark)
    data[at : at + len(_BLANK)] = hashlib.sha256(data).hexdigest().encode()
    return bytes(data)


def _check(data: bytes, mark: bytes) -> None:
    at = _digest_at(data, mark)
    digest = data[at : at + len(_BLANK)]
    whole = memoryview(data)  # its slices copy nothing of a large file
    blanked = hashlib.sha256(whole[:at])
    blanked.update(_BLANK)
    blanked.update(whole[at + len(_BLANK) :])
    if blanked.hexdigest().encode() != digest:
        raise BrokenSeal("its bytes are not those that were written (checksum differs)")


def _digest_at(data: bytes | bytearray, mark: bytes) -> int:
    # It is written last, so the last match is it, whatever a caption says.
    at = data.rfind(mark)
    if at < 0:
        raise BrokenSeal("it holds no checksum: damaged, or not written by this project")
    return at + len(mark)
