"""The stream of videos."""

from __future__ import annotations

from collections.abc import Iterator

from mlb_batch.source.model import Inspection, Video
from mlb_batch.spec import JobSpec


def inspect(spec: JobSpec) -> Inspection:
    """One pass over the input: every mistake in it is one line of one UserError."""
    raise NotImplementedError


def videos(spec: JobSpec) -> Iterator[Video]:
    raise NotImplementedError
