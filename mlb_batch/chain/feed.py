"""The source as a Ray Data datasource: a stream of videos, less what needs no work."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import groupby, islice
from typing import Any

import pyarrow as pa
import ray
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from mlb_batch.chain.pace import Pace
from mlb_batch.chain.parts import Part
from mlb_batch.errors import RowError
from mlb_batch.source import Inspection, Video, videos
from mlb_batch.spec import JobSpec
from mlb_batch.stages import attempt
from mlb_batch.threads import Threads
from mlb_batch.video import version_of
from mlb_batch.work import Counts, History, Work, in_storage, item_table

STAT_THREADS = 16  # looking up a video's version is one small request, and a bucket answers many at once
AHEAD = 16 * STAT_THREADS
SENT_TOGETHER = 8  # rows about one clip, at most: many answers to a clip still keep all readers busy
FLUSH_VIDEOS = 1000  # counts of skipped videos travel on after this many, so that progress shows


class VideoSource(Datasource):
    """One task that streams, on the driver's node, where a local manifest lies.

    What it needs to know lies in the object store: a folder's names can be many megabytes, and a task is to be small.
    """

    supports_distributed_reads = False

    def __init__(self, spec: JobSpec, found: Inspection, history: Any, part: Part) -> None:
        super().__init__()
        self._given = (spec, ray.put(found), history, part)

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        unknown = BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None, input_files=None)
        given = self._given
        return [ReadTask(lambda: _blocks(*given), unknown)]


def _blocks(spec: JobSpec, found: Any, history: Any, part: Part) -> Iterator[pa.Table]:
    works = unfinished(spec, ray.get(found), ray.get(history), part)
    return map(item_table, together(paced(works, part.pace)))


def paced(works: Iterable[Work], pace: Pace | None) -> Iterator[Work]:
    begun = 0
    for work in works:
        if pace and work.before.videos:  # as the driver counts those that end: what else comes of a row counts for none
            pace.wait(begun)
            begun += 1
        yield work


def together(works: Iterable[Work]) -> Iterator[list[Work]]:
    """Neighbours that are about the same clip go to one reader, which then reads it once."""
    for _, same in groupby(works, key=lambda work: work.clip):
        while some := list(islice(same, SENT_TOGETHER)):
            yield some


def unfinished(spec: JobSpec, found: Inspection, history: History, part: Part) -> Iterator[Work]:
    """The videos that need work; the counts of those that don't ride on the next one that is sent."""
    before, row, stands = Counts(), None, ""
    for work in looked_up(spec, found, history, part):
        row_before, row = row, work.video.row
        stands = work.video.uri if work.counts.skipped_done else stands
        before += Counts(videos=int(row != row_before))  # one whose prompts are partly bad comes in several
        if work.asks or before.videos >= FLUSH_VIDEOS:
            yield replace(work, before=before, stands=stands)
            before = Counts()
        else:
            before, last = before + work.counts, work
    if before != Counts():
        yield replace(last, counts=Counts(), before=before, stands=stands)


def looked_up(spec: JobSpec, found: Inspection, history: History, part: Part) -> Iterator[Work]:
    """In the source's order, with the versions of a few hundred videos looked up ahead."""
    stream = (video for video in videos(spec, found, part.begin, part.end) if _chosen(video, part.share))
    with Threads(STAT_THREADS) as pool:
        while ahead := list(islice(stream, AHEAD)):
            yield from pool.map(partial(_work, spec, history), ahead)


def _work(spec: JobSpec, history: History, video: Video) -> Work:
    version = ""
    if video.problem is None and spec.input.changed == "version":
        found = attempt(lambda: version_of(video.uri), "storage")
        if isinstance(found, RowError):
            video = replace(video, problem=found)
            return replace(history.work(video, "", (video.start_s, video.end_s)), in_storage=in_storage(found))
        version = found
    return history.work(video, version, (video.start_s, video.end_s))


def _chosen(video: Video, share: float) -> bool:
    if share >= 1.0:
        return True
    digest = hashlib.sha256(f"sample {video.row}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64
