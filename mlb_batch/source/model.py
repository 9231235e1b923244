"""The nouns of the input: a video (or the part of one that a manifest row names) and its prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pyarrow as pa

from mlb_batch.errors import RowError


@dataclass(frozen=True)
class Prompt:
    """One question to one video. `kind` is caption, qa or choice."""

    id: str
    kind: str
    text: str
    choices: tuple[str, ...] = ()


def span_ms(start_s: float | None, end_s: float | None) -> list[int | None]:
    """A span as it names an annotation: in whole milliseconds."""
    return [None if at_s is None else round(at_s * 1000) for at_s in (start_s, end_s)]


InputRow = tuple[str, float | None, float | None]  # by the id of its video, and where its part begins and ends


@dataclass(frozen=True)
class Video:
    """One video, or the part of it from `start_s` to `end_s`, with all its prompts.

    `problem`, where the row can't be annotated: it travels on and ends in errors/, and nothing of it is opened.
    """

    video_id: str
    uri: str
    start_s: float | None
    end_s: float | None
    prompts: tuple[Prompt, ...]
    columns: dict[str, object]
    problem: RowError | None = None

    @property
    def row(self) -> InputRow:
        return self.video_id, self.start_s, self.end_s


@dataclass(frozen=True)
class Inspection:
    """What one pass over the input found, once nothing in it is wrong."""

    num_rows: int
    passthrough: pa.Schema  # the passthrough columns, as they stand at the end of every output row
    uris: tuple[str, ...] = ()  # what a glob or a prefix listed; empty for a manifest, which is read again instead
    # The types that could hold the values of a passthrough column; none are named where it is null in every row.
    holding: Mapping[str, tuple[pa.DataType, ...]] = field(default_factory=dict)
    version: str = ""  # of the manifest

    def first(self, limit: int | None) -> int:
        """So many rows, or all."""
        return self.num_rows if limit is None else min(limit, self.num_rows)

    def bounded(self, limit: int | None) -> int | None:
        """The limit; none where it leaves nothing out."""
        return limit if self.first(limit) < self.num_rows else None

    def like(self, written: pa.Schema) -> Inspection:
        """With the types of then, where they hold what a column has now: 0.5 one night, then 1 and 2."""
        return replace(self, passthrough=pa.schema([self._like(column, written) for column in self.passthrough]))

    def _like(self, column: pa.Field, written: pa.Schema) -> pa.Field:
        if column.name not in written.names or column.name not in self.holding:
            return column
        then, kinds = written.field(column.name), self.holding[column.name]
        return then if not kinds or then.type in kinds else column
