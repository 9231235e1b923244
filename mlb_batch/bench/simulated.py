"""Readers that read nothing and captioners that only take time: `scale` runs the chain at sizes for which there are not
enough devices.

Loaded by every simulated actor, so it imports no model.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pyarrow as pa

from mlb_batch.work import Outcome, Read, Row, Work, item_table, items, read_table, reads


class NoFrames:
    """Work in; out what a reader hands on, without frames."""

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        yield from (read_table(Read(work)) for work in items(table))


class Simulated:
    """What was read in; after as long as the device would take, rows as they would be."""

    def __init__(self, template: Row, clip_s: float) -> None:
        """`template`: a real row; `clip_s`: what a clip takes on the device."""
        self._template, self._clip_s = template, clip_s

    def __call__(self, table: pa.Table) -> pa.Table:
        works: list[Work] = [read.work for read in reads(table)]
        time.sleep(self._clip_s * sum(1 for work in works if work.asks))
        return item_table([self._outcome(work) for work in works])

    def _outcome(self, work: Work) -> Outcome:
        video = {"video_id": work.video.video_id, "uri": work.video.uri}
        rows = [{**self._template, **video, "annotation_id": ask.annotation_id} for ask in work.asks]
        return Outcome(annotations=rows, counts=work.counts + work.before)
