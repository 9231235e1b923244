"""The nouns of the input: a video (or the part of one that a manifest row names) and its prompts."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa


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


@dataclass(frozen=True)
class Video:
    """One video, or the part of it from `start_s` to `end_s`, with all its prompts.

    `problem` is (error_class, message) where the row can't be annotated: it travels on and ends in errors/, and
    nothing of it is opened.
    """

    video_id: str
    uri: str
    start_s: float | None
    end_s: float | None
    prompts: tuple[Prompt, ...]
    columns: dict[str, object]
    problem: tuple[str, str] | None = None


@dataclass(frozen=True)
class Inspection:
    """What one pass over the input found, once nothing in it is wrong."""

    num_rows: int
    passthrough: pa.Schema  # the passthrough columns, as they stand at the end of every output row
    uris: tuple[str, ...] = ()  # what a glob or a prefix listed; empty for a manifest, which is read again instead
