"""The columns of annotations/, errors/ and selections/, in order, and how rows become a table of exactly these.

No column is nullable: an all-null column loses its type on its way, and readers branch on values, not on absence. What
a row has no value for is "" or 0 or an empty list. Passthrough columns are the user's own and stand last, as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

SCHEMA_VERSION = 2

_TEXT, _COUNT, _SMALL, _REAL = pa.string(), pa.int64(), pa.int32(), pa.float64()
_COUNTS = pa.list_(pa.field("item", pa.int32(), nullable=False))
_REALS, _MOMENT = pa.list_(pa.field("item", pa.float64(), nullable=False)), pa.timestamp("us", tz="UTC")

# What an answer cost, as the engine counts it and as the papers do.
BILL = (
    "flops_planned", "flops_executed", "flops_vanilla", "flops_vision", "flops_prefill", "flops_scoring",
    "flops_generate", "macs_paper_planned", "macs_paper_executed", "macs_paper_vanilla",
)  # fmt: skip

ANNOTATION_COLUMNS: dict[str, pa.DataType] = {
    "annotation_id": _TEXT,
    "video_id": _TEXT,
    "uri": _TEXT,
    "video_version": _TEXT,
    "schema_version": _SMALL,
    "clip_start_s": _REAL,
    "clip_end_s": _REAL,
    "prompt_id": _TEXT,
    "kind": _TEXT,
    "prompt": _TEXT,
    "text": _TEXT,
    "choice": _TEXT,
    "choice_scores": _REALS,
    "status": _TEXT,
    "finish_reason": _TEXT,
    "num_prompt_tokens": _COUNT,
    "num_new_tokens": _COUNT,
    "duration_s": _REAL,
    "frames_wanted": _COUNT,
    "frames_read": _COUNT,
    "frame_times_s": _REALS,
    "num_visual_tokens": _COUNT,
    "num_kept_tokens": _COUNT,
    "num_segments": _COUNT,
    "relevance_source": _TEXT,
    "method": _TEXT,
    "select": _TEXT,
    "keep_ratio": _REAL,
    **dict.fromkeys(BILL, _COUNT),
    "read_s": _REAL,
    "model_s": _REAL,
    "model": _TEXT,
    "fingerprint": _TEXT,
    "run_id": _TEXT,
    "attempt": _SMALL,
    "created_at": _MOMENT,
}

# The version is "" where the video could not be looked up; a span ends at 0 where its end was not known. Provisional is
# what failed before that, or before the video was cut into its clips: the annotations to come have other ids.
ERROR_COLUMNS: dict[str, pa.DataType] = {
    "annotation_id": _TEXT,
    "video_id": _TEXT,
    "uri": _TEXT,
    "video_version": _TEXT,
    "clip_start_s": _REAL,
    "clip_end_s": _REAL,
    "provisional": pa.bool_(),
    "prompt_id": _TEXT,
    "prompt": _TEXT,
    "error_class": _TEXT,
    "message": _TEXT,
    "retryable": pa.bool_(),
    "attempt": _SMALL,
    "fingerprint": _TEXT,
    "run_id": _TEXT,
    "created_at": _MOMENT,
}

# What was kept of a sampled answer, one row a cut: vlm/selection.py says what each column means.
SELECTION_COLUMNS: dict[str, pa.DataType] = {
    "annotation_id": _TEXT,
    "layer": _SMALL,
    "frames": _SMALL,
    "rows": _SMALL,
    "cols": _SMALL,
    "candidates": _COUNTS,
    "kept": _COUNTS,
    "score": _REALS,
    "null_score": _REALS,
    "segment": _COUNTS,
    "kept_by_frame": _COUNTS,
    "kept_by_place": _COUNTS,
    "plain_by_frame": _COUNTS,
    "plain_by_place": _COUNTS,
    "fingerprint": _TEXT,
    "run_id": _TEXT,
    "created_at": _MOMENT,
}

# Stamped on every row by the ledger; a row that is handed to it doesn't have them.
STAMPED = frozenset({"schema_version", "fingerprint", "run_id", "created_at"})


def annotation_schema(passthrough: pa.Schema) -> pa.Schema:
    clash = [name for name in passthrough.names if name in ANNOTATION_COLUMNS]
    assert not clash, f"passthrough columns that are output columns: {clash}"
    return pa.schema([*_fields(ANNOTATION_COLUMNS), *passthrough])


def error_schema() -> pa.Schema:
    return pa.schema(_fields(ERROR_COLUMNS))


def selection_schema() -> pa.Schema:
    return pa.schema(_fields(SELECTION_COLUMNS))


def _fields(columns: Mapping[str, pa.DataType]) -> list[pa.Field]:
    return [pa.field(name, kind, nullable=False) for name, kind in columns.items()]


def to_table(rows: Sequence[Mapping[str, object]], schema: pa.Schema) -> pa.Table:
    """The rows as a table of exactly this schema; a missing, unknown or null value is our own mistake."""
    names = set(schema.names)
    for row in rows:
        assert row.keys() == names, f"missing {sorted(names - row.keys())}, unknown {sorted(row.keys() - names)}"
    table = pa.Table.from_pylist(list(rows), schema=schema)
    nulls = [field.name for field in schema if not field.nullable and table[field.name].null_count]
    assert not nulls, f"null in {nulls}"
    return table
