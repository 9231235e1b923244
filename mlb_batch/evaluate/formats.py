"""Annotation files as rows, whatever they are written in: JSON, JSON lines, CSV, tab-separated, Parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mlb_batch.errors import InputError
from mlb_batch.storage import open_store

Row = dict[str, Any]


@dataclass(frozen=True)
class File:
    """One annotation file: a list of rows, or a mapping from ids to something."""

    name: str
    rows: tuple[Row, ...]
    mapping: dict[str, Any]

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem


def read_files(uris: Sequence[str]) -> tuple[File, ...]:
    return tuple(read_file(uri) for uri in uris)


def read_file(uri: str) -> File:
    folder, slash, name = uri.rpartition("/")
    try:
        data = open_store(folder or slash or ".").read(name)
    except FileNotFoundError:
        raise InputError(f"benchmark.annotations: {uri}: no such file") from None
    except OSError as error:
        raise InputError(f"benchmark.annotations: {uri}: can't be read: {error}") from None
    try:
        content = _parsed(name, data)
    except (ValueError, RecursionError, csv.Error, pa.ArrowException) as error:
        raise InputError(f"benchmark.annotations: {uri}: not what its name says: {str(error)[:200]}") from None
    if isinstance(content, dict):
        return File(name, (), content)
    if not all(isinstance(row, dict) for row in content):
        raise InputError(f"benchmark.annotations: {uri}: a list of rows is wanted, each with its columns")
    return File(name, tuple(content), {})


def _parsed(name: str, data: bytes) -> Any:
    if name.endswith(".parquet"):
        return pq.read_table(io.BytesIO(data)).to_pylist()
    text = data.decode("utf-8-sig")
    if name.endswith(".jsonl"):
        return [json.loads(line) for line in text.split("\n") if line.strip()]  # U+2028 is no end of one
    if name.endswith((".csv", ".tsv")):
        header = text.partition("\n")[0]
        return list(csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if "\t" in header else ","))
    if name.endswith(".json"):
        content = json.loads(text)
        if not isinstance(content, list | dict):
            raise ValueError("neither a list nor a mapping")
        return content
    raise ValueError("its name ends in none of .json, .jsonl, .csv, .tsv, .parquet")
