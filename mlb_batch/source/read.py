"""The input, read twice: once to check all of it, once as the stream of videos.

One row of a manifest is one video, or the part of it that the start and end columns name. Ids are the id column, else
the absolute uri. The rule for duplicates: an id (with its start and end, where there are such columns) may stand once;
a second time is refused, because two rows of one id would be one annotation with two meanings.

Nothing is kept but 32 bytes a row for that rule: a million rows stream through flat memory.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from mlb_batch.columns import ANNOTATION_COLUMNS
from mlb_batch.errors import InputError, JobError, RowError, SpecError
from mlb_batch.outside import encodable
from mlb_batch.source import listing, table
from mlb_batch.source.model import Inspection, Video, span_ms
from mlb_batch.source.questions import asked_of_rows
from mlb_batch.source.table import Row
from mlb_batch.source.uris import UriPolicy
from mlb_batch.spec import JobSpec
from mlb_batch.spec_parts import InputSpec
from mlb_batch.spec_text import did_you_mean
from mlb_batch.storage import in_full

MOST_PROBLEMS = 20
MOST_ID_CHARS = 4096
MOST_SECONDS = 1e9  # thirty years; what is more is no place in a video
KEY_BYTES = 16


def inspect(spec: JobSpec) -> Inspection:
    """One pass over the input; every mistake in it is one line of one UserError."""
    if spec.input.manifest is None:
        uris = tuple(listing.video_uris(spec.input, in_full(spec.output.uri).rstrip("/")))
        return Inspection(len(uris), pa.schema([]), uris)
    version = table.version(spec.input.manifest)  # before: what is read behind it may be newer, and is found to be
    return replace(_check_rows(spec, _check_columns(spec)), version=version)


def videos(
    spec: JobSpec, inspection: Inspection | None = None, begin: int = 0, end: int | None = None
) -> Iterator[Video]:
    """Every video (or those of the rows from `begin` to `end`) with its prompts, in the input's order; a row whose
    prompts are partly bad comes in several.
    """
    inspection = inspection or inspect(spec)
    policy = UriPolicy.of(spec.input)
    asked = asked_of_rows(spec.prompts)
    for row in islice(_rows(spec, inspection), begin, end):
        uri, problem = _resolved(policy, row[spec.input.uri_column])
        video_id = uri if spec.input.id_column is None else str(row[spec.input.id_column])
        start_s, end_s = _span(spec.input, row)
        columns = {field.name: _column_value(row[field.name], field.type) for field in inspection.passthrough}
        good, bad = asked(row)
        if good:
            yield Video(video_id, uri, start_s, end_s, good, columns, problem)
        for one in bad:
            bad_prompt = RowError("bad_prompt", one.message)
            yield Video(video_id, uri, start_s, end_s, (one.prompt,), columns, problem or bad_prompt)


def _rows(spec: JobSpec, inspection: Inspection) -> Iterator[Row]:
    if spec.input.manifest is None:
        return ({spec.input.uri_column: uri} for uri in inspection.uris)
    if table.version(spec.input.manifest) != inspection.version:
        raise JobError(
            f"input.manifest: {spec.input.manifest}: it was changed while the job ran, and what it holds now was not "
            "checked; what is annotated stays, run the same command again"
        )
    return (row for _, row in table.rows(spec.input.manifest, _wanted(spec)))


def _wanted(spec: JobSpec) -> list[str]:
    """The manifest's columns that the job reads, each once."""
    given = spec.input
    keys = [given.uri_column, given.id_column, given.start_column, given.end_column]
    names = [*keys, *(prompt.column for prompt in spec.prompts), *given.columns]
    return list(dict.fromkeys(name for name in names if name is not None))


def _check_columns(spec: JobSpec) -> pa.Schema | None:
    """SpecError naming every column that is missing or misused; the declared types of the others."""
    assert spec.input.manifest is not None
    declared = table.column_types(spec.input.manifest)
    problems = [
        f"input.columns: {name!r} is the name of an output column; rename it in the manifest"
        for name in spec.input.columns
        if name.lower() in ANNOTATION_COLUMNS  # most query engines take no notice of case
    ]
    if declared is not None:
        problems += [_no_column(spec, name, declared.names) for name in _wanted(spec) if name not in declared.names]
        problems += [
            f"input.columns: {name!r} is of the type {declared.field(name).type}; cast it to a plain one"
            for name in spec.input.columns
            if name in declared.names and _is_extended(declared.field(name).type)
        ]
    if problems:
        raise SpecError("\n".join(problems))
    return declared


def _is_extended(kind: pa.DataType) -> bool:
    """A type of somebody's own, or one that holds such a one."""
    if isinstance(kind, pa.BaseExtensionType):
        return True
    inside = kind.value_type if pa.types.is_dictionary(kind) else None
    return any(_is_extended(kind.field(i).type) for i in range(kind.num_fields)) or bool(
        inside and _is_extended(inside)
    )


def _no_column(spec: JobSpec, name: str, known: list[str]) -> str:
    some = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
    return f"{_key_of(spec, name)}: the manifest has no column {name!r}{did_you_mean(name, known)}; it has: {some}"


def _key_of(spec: JobSpec, column: str) -> str:
    """The place in the job file that asks for a column."""
    for key in ("uri_column", "id_column", "start_column", "end_column"):
        if getattr(spec.input, key) == column:
            return f"input.{key}"
    for n, prompt in enumerate(spec.prompts):
        if prompt.column == column:
            return f"prompts[{n}].column"
    return "input.columns"


def _check_rows(spec: JobSpec, declared: pa.Schema | None) -> Inspection:
    manifest = spec.input.manifest
    assert manifest is not None
    problems: list[str] = []
    keys, spans, policy = bytearray(), array("d"), UriPolicy.of(spec.input)
    types, met = table.ValueTypes(spec.input.columns), set[str]()
    place = 0
    for place, row in table.rows(manifest, _wanted(spec), problems.append, met):
        found = list(_row_problems(spec.input, row))
        problems += [f"row {place}: {problem}" for problem in found]
        if len(problems) > MOST_PROBLEMS:
            break
        if not found:
            keys += _key(spec, row, policy)
            spans.extend(_limits(spec, row))
        types.see(row)
    num_rows = len(keys) // KEY_BYTES
    if num_rows == 0 and not problems:
        problems.append("it holds no rows")
    if declared is None and place:
        none = "no row" if len(problems) <= MOST_PROBLEMS else f"none of the first {place} rows"
        unmet = [name for name in _wanted(spec) if name not in met]
        problems = [*(f"{none} has a key {name!r} ({_key_of(spec, name)})" for name in unmet), *problems]
    if not problems:
        problems += _repeats(spec, keys, spans)
    if problems:
        lines = problems[:MOST_PROBLEMS] + (["... and more"] if len(problems) > MOST_PROBLEMS else [])
        raise InputError("\n".join(f"input.manifest: {manifest}: {line}" for line in lines))
    passthrough = _passthrough(spec, types.schema() if declared is None else declared)
    return Inspection(num_rows, passthrough, (), types.holding())


def _row_problems(given: InputSpec, row: Row) -> Iterator[str]:
    name = given.id_column or given.uri_column
    identity = row[name]
    if identity is None or identity == "":
        yield f"{name} is null; every row needs an id"
    elif not isinstance(identity, str | int) or isinstance(identity, bool):
        yield f"{name} is a {type(identity).__name__}, not a text or a whole number"
    elif given.id_column and isinstance(identity, str) and (len(identity) > MOST_ID_CHARS or not encodable(identity)):
        yield f"{name} is not a text of at most {MOST_ID_CHARS} characters"
    uri = row[given.uri_column]
    if given.id_column and not isinstance(uri, str | None):
        yield f"{given.uri_column} is a {type(uri).__name__}, not a text"
    try:
        start_s, end_s = _span(given, row)
    except (TypeError, ValueError) as error:
        yield str(error)
        return
    if end_s is not None and end_s <= (start_s or 0.0):
        yield f"the part to annotate ends at {end_s:g} s, not after its start"


def _span(given: InputSpec, row: Row) -> tuple[float | None, float | None]:
    return _seconds(given.start_column, row), _seconds(given.end_column, row)


def _seconds(column: str | None, row: Row) -> float | None:
    value = None if column is None else row[column]
    if value is None:
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{column} is {str(value)[:40]!r}, not a number of seconds") from None
    if not 0 <= seconds <= MOST_SECONDS:
        raise ValueError(f"{column} is {seconds}, not a number of seconds from 0 to {MOST_SECONDS:g}")
    return seconds


def _key(spec: JobSpec, row: Row, policy: UriPolicy) -> bytes:
    """Of what names an annotation, however the row writes it: 1 and "1", 5 and 5.0, a.mp4 and ./a.mp4 are the same.

    Where `clips` cuts a row into pieces that have names of their own, of its id alone.
    """
    given = spec.input
    video_id = str(row[given.id_column]) if given.id_column else _resolved(policy, row[given.uri_column])[0]
    span = None if spec.clips else span_ms(*_span(given, row))
    return hashlib.blake2b(repr([video_id, span]).encode(), digest_size=KEY_BYTES).digest()


def _limits(spec: JobSpec, row: Row) -> tuple[float, float]:
    """Of two rows with one key, these may not overlap; without `clips` any two do."""
    start_s, end_s = _span(spec.input, row) if spec.clips else (None, None)
    return start_s or 0.0, math.inf if end_s is None else end_s


def _repeats(spec: JobSpec, keys: bytearray, spans: array[float]) -> list[str]:
    """The first few ids that stand twice; a second pass finds their names, so that none has to be kept."""
    every = np.frombuffer(bytes(keys), dtype=f"S{KEY_BYTES}")
    start_N, end_N = np.asarray(spans).reshape(-1, 2).T
    order = np.lexsort((start_N, every))
    before, after = order[:-1], order[1:]
    again = (every[before] == every[after]) & (start_N[after] < end_N[before])
    twice = {bytes(value).ljust(KEY_BYTES, b"\0") for value in np.unique(every[after[again]])[:100_000]}
    if not twice:
        return []
    places: dict[bytes, list[Any]] = {}
    policy = UriPolicy.of(spec.input)
    assert spec.input.manifest is not None
    for place, row in table.rows(spec.input.manifest, _wanted(spec)):
        key = _key(spec, row, policy)
        if key in twice and (key in places or len(places) < 5):
            places.setdefault(key, [row[spec.input.id_column or spec.input.uri_column]]).append(place)
    named = [f"{str(name)[:100]!r} (rows {', '.join(map(str, at[:3]))})" for name, *at in places.values()]
    more = f" and {len(twice) - len(named)} more" if len(twice) > len(named) else ""
    if spec.clips:
        return [
            f"parts of one video that overlap, which clips would cut into the same pieces: {', '.join(named)}{more}"
        ]
    return [f"ids that stand more than once: {', '.join(named)}{more}; give every row its own id, or drop the repeats"]


# As one or another library writes it; a column that is null in every row could be anything.
_SPELLINGS_OF_TEXT = (pa.null(), pa.large_string(), pa.string_view())


def _passthrough(spec: JobSpec, types: pa.Schema) -> pa.Schema:
    """The passthrough columns' fields, without what a file says beside their types."""
    fields = []
    for name in spec.input.columns:
        kind = types.field(name).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        fields.append(pa.field(name, pa.string() if kind in _SPELLINGS_OF_TEXT else kind))
    return pa.schema(fields)


def _resolved(policy: UriPolicy, uri: object) -> tuple[str, RowError | None]:
    """The uri to open, or what was written and why it can't be opened."""
    if uri is None or uri == "":
        return "", RowError("not_found", "the manifest row has no uri")
    try:
        return policy.resolve(str(uri)), None
    except RowError as error:
        return str(uri).encode("utf-8", "backslashreplace").decode(), error


def _column_value(value: object, kind: pa.DataType) -> object:
    """As the column's type holds it: JSON Lines mix types in one column, and others do from night to night."""
    if value is None or not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return value
    return table.as_text(table.whole(value))
