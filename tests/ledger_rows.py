"""Rows for ledger tests, and a plain reading of what was committed."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlb_batch.columns import ANNOTATION_COLUMNS, ERROR_COLUMNS, SELECTION_COLUMNS, STAMPED
from mlb_batch.ledger import annotation_id
from mlb_batch.source import Prompt
from mlb_batch.storage import filesystem

FINGERPRINT, OTHER = "0123456789abcdef", "fedcba9876543210"
PROMPT = Prompt("caption", "caption", "Describe the video.")


def row_id(n: int, fingerprint: str = FINGERPRINT) -> str:
    return annotation_id(f"video-{n}", "", None, None, PROMPT, fingerprint)


def annotation(n: int, fingerprint: str = FINGERPRINT, **values: Any) -> dict[str, Any]:
    """A whole annotation row, as the pipeline hands it over, of the n-th video."""
    row = {name: _some_value(kind) for name, kind in ANNOTATION_COLUMNS.items() if name not in STAMPED}
    told = {"annotation_id": row_id(n, fingerprint), "video_id": f"video-{n}", "text": f"text of {n}", "attempt": 1}
    return {**row, "kind": "caption", "status": "ok", "method": "adatp", **told, **values}


def error(n: int, attempt: int = 1, error_class: str = "timeout", fingerprint: str = FINGERPRINT) -> dict[str, Any]:
    row = {name: _some_value(kind) for name, kind in ERROR_COLUMNS.items() if name not in STAMPED}
    told = {"annotation_id": row_id(n, fingerprint), "video_id": f"video-{n}", "uri": f"s3://b/{n}.mp4"}
    said = {"error_class": error_class, "message": "took too long", "retryable": error_class == "timeout"}
    return {**row, **told, **said, "attempt": attempt}


def selection(n: int, fingerprint: str = FINGERPRINT, layer: int = 2) -> dict[str, Any]:
    row = {name: _some_value(kind) for name, kind in SELECTION_COLUMNS.items() if name not in STAMPED}
    return {**row, "annotation_id": row_id(n, fingerprint), "layer": layer}


def _some_value(kind: pa.DataType) -> Any:
    if pa.types.is_string(kind):
        return "x"
    if pa.types.is_list(kind):
        return [0.25, 0.75] if pa.types.is_floating(kind.value_type) else [1, 2]
    if pa.types.is_boolean(kind):
        return False
    if pa.types.is_timestamp(kind):
        return datetime.datetime.now(datetime.UTC)
    return 1.0 if pa.types.is_floating(kind) else 1


def read_plainly(folder: str, filesystem: Any = None) -> list[str]:
    """The annotation ids that any Parquet reader sees in a folder; empty where there is no folder yet."""
    try:
        return list(
            pq.read_table(folder, columns=["annotation_id"], filesystem=filesystem)["annotation_id"].to_pylist()
        )
    except FileNotFoundError:
        return []


class Place:
    """An output on one kind of storage, read as any Parquet reader would."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def ids(self, fingerprint: str = FINGERPRINT) -> list[str]:
        path, fs = f"{self.uri}/annotations/{fingerprint}", None
        if self.uri.startswith("s3://"):
            fs, path = filesystem(path)
        return read_plainly(path, fs)


@pytest.fixture(params=["disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "disk":
        return Place(str(tmp_path / "out"))
    server = request.getfixturevalue("s3")
    return Place(f"s3://{server.make_bucket()}/some/out")
