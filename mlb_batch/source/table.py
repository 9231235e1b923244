"""Manifest files, row by row in flat memory: Parquet by batches, CSV and JSON Lines by lines."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from mlb_batch.errors import InputError
from mlb_batch.outside import mended
from mlb_batch.storage import filesystem
from mlb_batch.storage_errors import first_line, root_line
from mlb_batch.stored_file import StoredFile, asked, version_by

Row = dict[str, Any]
BATCH_ROWS = 128  # a file of a few kilobytes can hold a megabyte in every row
LONGEST_LINE = 16 * 2**20

Report = Callable[[str], None]


@contextmanager
def opened(uri: str) -> Iterator[IO[bytes]]:
    """The manifest's bytes. InputError for what the user can mend: that it is missing, or damaged."""
    fs, path = filesystem(uri)
    with _mendable(uri), StoredFile(uri, fs, path) as file:
        yield cast(IO[bytes], file)


def version(uri: str) -> str:
    """Another one once the manifest is another, as far as its storage tells."""
    fs, path = filesystem(uri)
    with _mendable(uri):
        return version_by(asked(uri, lambda: fs.info(path)))


@contextmanager
def _mendable(uri: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"input.manifest: {uri}: no such file") from None
    except OSError as error:
        raise InputError(f"input.manifest: {uri}: can't be read: {root_line(error)}") from None


def column_types(uri: str) -> pa.Schema | None:
    """The columns that the file itself declares; None for JSON Lines, which declares none."""
    if uri.endswith(".jsonl"):
        return None
    with opened(uri) as file:
        if uri.endswith(".parquet"):
            schema = _parquet(file, uri).schema_arrow
        else:
            header = _header(file, uri)
            schema = pa.schema([(name, pa.string()) for name in header])
    if not schema.names and uri.endswith(".csv"):
        raise InputError(f"input.manifest: {uri}: the file is empty; a CSV file begins with its columns' names")
    twice = sorted(name for name, times in Counter(schema.names).items() if times > 1)
    if twice:
        raise InputError(f"input.manifest: {uri}: the column {twice[0]!r} stands there twice")
    return schema


def rows(
    uri: str, wanted: Sequence[str], report: Report | None = None, met: set[str] | None = None
) -> Iterator[tuple[int, Row]]:
    """(place, row) for every sound row; the place is a line's number, in Parquet a row's, from 1.

    A malformed line is handed to `report`, which may collect it or raise; without one it is an InputError. `met` is
    filled with the keys that stand in JSON Lines, if only with nulls.
    """
    report = report or _refuse(uri)
    with opened(uri) as file:
        if uri.endswith(".parquet"):
            yield from _parquet_rows(file, uri, wanted)
        elif uri.endswith(".csv"):
            yield from _csv_rows(file, uri, wanted, report)
        else:
            yield from _json_rows(file, uri, wanted, report, set() if met is None else met)


def _refuse(uri: str) -> Report:
    def report(problem: str) -> None:
        raise InputError(f"input.manifest: {uri}: {problem}")

    return report


def _parquet(file: IO[bytes], uri: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except pa.ArrowException as error:
        raise InputError(f"input.manifest: {uri}: not a Parquet file: {first_line(error)}") from None


def _parquet_rows(file: IO[bytes], uri: str, wanted: Sequence[str]) -> Iterator[tuple[int, Row]]:
    place = 0
    try:
        for batch in _parquet(file, uri).iter_batches(BATCH_ROWS, columns=list(wanted), use_threads=False):
            for row in _held(batch, uri, place):
                place += 1
                yield place, row
    except pa.ArrowException as error:
        raise InputError(f"input.manifest: {uri}: damaged after row {place}: {first_line(error)}") from None


def _held(batch: pa.RecordBatch, uri: str, place: int) -> list[Row]:
    try:
        return batch.to_pylist()
    except (pa.ArrowException, ValueError, OverflowError) as error:
        some = "a value that Python can't hold (a date of the year 10000, a time zone that nobody knows)"
        said = f"between rows {place + 1} and {place + len(batch)} {some}: {first_line(error)}"
        raise InputError(f"input.manifest: {uri}: {said}") from None


def _text_lines(file: IO[bytes], uri: str, report: Report) -> Iterator[str]:
    """Lines of text with their ends; a line that is no UTF-8 or has no end is reported and passed over."""
    number = 0
    lines = io.BufferedReader(cast(io.RawIOBase, file))  # remote files can't bound a line by themselves
    while line := lines.readline(LONGEST_LINE):
        number += 1
        if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
            raise InputError(f"input.manifest: {uri}: line {number} is longer than {LONGEST_LINE >> 20} MB")
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            report(f"line {number} is not UTF-8 text")
            yield "\n"  # keeps the numbers of the lines behind it


def _header(file: IO[bytes], uri: str) -> list[str]:
    """The first line that holds anything."""
    try:
        return next(filter(None, csv.reader(_text_lines(file, uri, _refuse(uri)), strict=True)), [])
    except csv.Error as error:
        raise InputError(f"input.manifest: {uri}: its first line: {error}") from None


def _csv_rows(file: IO[bytes], uri: str, wanted: Sequence[str], report: Report) -> Iterator[tuple[int, Row]]:
    reader = csv.reader(_text_lines(file, uri, report), strict=True)
    header: list[str] = []
    while True:
        begins = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            report(f"line {begins}: {error}")
            continue
        if cells is None:
            return
        if not cells:
            continue
        if not header:
            header = cells
            places = [header.index(name) for name in wanted]
        elif len(cells) == len(header):
            # CSV can't say null: an empty cell is one.
            yield begins, {name: cells[at] or None for name, at in zip(wanted, places, strict=True)}
        else:
            report(f"line {begins} has {len(cells)} cells, the first line {len(header)}")


def _json_rows(
    file: IO[bytes], uri: str, wanted: Sequence[str], report: Report, met: set[str]
) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(_text_lines(file, uri, report), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            report(f"line {number}: not JSON: {first_line(error)}")
            continue
        if isinstance(value, dict):
            met.update(name for name in wanted if name in value)
            yield number, {name: value.get(name) for name in wanted}
        else:
            report(f"line {number}: a {type(value).__name__}, not an object with keys")


class _WideInt:
    """Stands for whole numbers that a column of fractions would round."""


class _WholeFraction:
    """Stands for 1.0: what pandas makes of whole numbers where one is missing."""


class ValueTypes:
    """The Arrow types for all values of each column, narrowest first; anything mixed or nested becomes JSON text."""

    def __init__(self, names: Sequence[str]) -> None:
        self._seen: dict[str, set[type]] = {name: set() for name in names}

    def see(self, row: Row) -> None:
        for name, seen in self._seen.items():
            value = row[name]
            if type(value) is int and not -(2**53) <= value <= 2**53:
                seen.add(_WideInt if -(2**63) <= value < 2**63 else list)  # no integer column holds the widest
            elif type(value) is float and isinstance(whole(value), int):
                seen.add(_WholeFraction)
            elif value is not None:
                seen.add(type(value))

    def schema(self) -> pa.Schema:
        """An all-null column could be anything, and is text."""
        return pa.schema([(name, kinds[0] if kinds else pa.string()) for name, kinds in self.holding().items()])

    def holding(self) -> dict[str, tuple[pa.DataType, ...]]:
        """The types that could hold each column, the narrowest first; none are named where all its values are null."""
        return {name: (*_holding(seen), *_TEXT) if seen else () for name, seen in self._seen.items()}


_TEXT = (pa.string(), pa.large_string())
_NUMBERS = (
    ({bool}, pa.bool_()),
    ({int, _WideInt}, pa.int64()),
    ({int, _WholeFraction, float}, pa.float64()),
    ({int, _WideInt, _WholeFraction}, pa.int64()),
)


def _holding(seen: set[type]) -> Iterator[pa.DataType]:
    return (kind for types, kind in _NUMBERS if seen <= types)


def whole(value: object) -> object:
    """A whole number as one, also where its column came as fractions, because a value is missing in another row."""
    if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53:
        return int(value)
    return value


def as_text(value: object) -> str:
    """A value in a text column; half a surrogate pair, which JSON can hold and UTF-8 can't, becomes a ?."""
    of_json = isinstance(value, dict | list | bool | int | float)
    return mended(json.dumps(value, ensure_ascii=False, default=str) if of_json else str(value))
