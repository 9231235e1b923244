"""What travels through the chain: one clip with the prompts that are still to be answered, and what became of it.

    Work     source -> reading: a video, or a clip of one, and what is asked
    Read     reading -> captioning: the same with its frames, or with what went wrong
    Outcome  captioning -> driver: finished rows, failed attempts, and the counts that the run's books are kept with

Between processes they are pickled inside an Arrow column, as Ray does with any object; nothing of it is ever stored.
Frames lie in a column of their own, so that they are never copied on their way.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mlb_batch.errors import RowError
from mlb_batch.ledger import Attempt, DoneIds, annotation_id, pending
from mlb_batch.source import Prompt, Video
from mlb_batch.spec_parts import RetrySpec
from mlb_batch.video import Frames

Row = dict[str, Any]
InStorage = Literal["found", "failed", ""]  # what storage said to a video that was asked for


@dataclass(frozen=True)
class Counts:
    """Annotations, by what became of them; they add up over the chain."""

    videos: int = 0
    expected: int = 0
    skipped_done: int = 0  # committed by an earlier run
    skipped_failed: int = 0  # failed in an earlier run, and not to be tried again

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.videos + other.videos,
            self.expected + other.expected,
            self.skipped_done + other.skipped_done,
            self.skipped_failed + other.skipped_failed,
        )


@dataclass(frozen=True)
class Ask:
    annotation_id: str
    prompt: Prompt
    attempt: int


@dataclass(frozen=True)
class Work:
    """One clip and what is asked of it. No asks: it only carries counts."""

    video: Video
    version: str
    start_s: float | None
    end_s: float | None
    asks: tuple[Ask, ...]
    counts: Counts  # of this clip
    before: Counts = Counts()  # of the videos since the last work that was sent, this one included
    in_storage: InStorage = ""  # what is known of it before it is read
    stands: str = ""  # the uri of a video that an earlier run could have, where one is known

    @property
    def key(self) -> str:
        return self.asks[0].annotation_id

    @property
    def clip(self) -> tuple[str, str, float | None, float | None]:
        """What is read: works that agree in it have the same frames."""
        return (self.video.uri, self.version, self.start_s, self.end_s)


@dataclass(frozen=True)
class Read:
    work: Work
    frames: Frames | None = None  # pixels are carried apart
    problem: RowError | None = None
    read_s: float = 0.0
    bytes_fetched: int = 0
    in_storage: InStorage = ""


@dataclass(frozen=True)
class Outcome:
    annotations: list[Row] = field(default_factory=list)
    errors: list[Row] = field(default_factory=list)
    selections: list[Row] = field(default_factory=list)
    counts: Counts = Counts()
    read_s: float = 0.0
    bytes_fetched: int = 0
    in_storage: InStorage = ""
    stands: str = ""  # the uri of a video that an earlier run could have
    model_s: float = 0.0  # the captioner's wall clock
    idle_s: float = 0.0  # what it waited for frames before
    flops_without_result: int = 0  # what it spent on attempts that failed; what died with a process is not known


@dataclass(frozen=True)
class History:
    """What earlier runs left under this fingerprint."""

    fingerprint: str
    retry: RetrySpec
    done: DoneIds = field(default_factory=DoneIds)
    attempts: Mapping[str, Attempt] = field(default_factory=dict)

    def work(self, video: Video, version: str, span: tuple[float | None, float | None]) -> Work:
        """What is still to be done of one span of a video, and the counts of what isn't."""
        asks, done, failed = [], 0, 0
        for prompt in video.prompts:
            key = annotation_id(video.video_id, version, *span, prompt, self.fingerprint)
            before = self.attempts.get(key)
            if key in self.done:
                done += 1
            elif not pending(before, self.retry):
                failed += 1
            else:
                asks.append(Ask(key, prompt, before.attempts + 1 if before else 1))
        counts = Counts(0, len(video.prompts), done, failed)
        return Work(video, version, *span, tuple(asks), counts)


def in_storage(answer: object) -> InStorage:
    """By what became of a video that was asked for; a timeout may be the storage's or the video's."""
    if not isinstance(answer, RowError):
        return "found"
    if answer.error_class in ("storage", "forbidden"):
        return "failed"
    return "" if answer.error_class == "timeout" else "found"


# Tables.


def read_table(read: Read) -> pa.Table:
    """One row; the pixels of its frames are shared, not copied."""
    frames = read.frames
    pixels = frames.pixels_FHWC if frames else np.empty((0, 0, 0, 3), np.uint8)
    empty = replace(frames, pixels_FHWC=pixels[:0]) if frames else None
    offsets = pa.py_buffer(np.array([0, pixels.nbytes], np.int64))
    column = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), 1, [None, offsets, pa.py_buffer(np.ascontiguousarray(pixels))]
    )
    return pa.table({"item": _pickled([replace(read, frames=empty)]), "pixels": column})


def item_table(values: Iterable[object]) -> pa.Table:
    return pa.table({"item": _pickled(values)})


def items(table: pa.Table) -> Iterator[Any]:
    for value in table["item"] if table.num_rows else ():  # of nothing, Ray Data makes a table without columns
        yield pickle.loads(value.as_buffer())


def reads(table: pa.Table) -> list[Read]:
    if not table.num_rows:
        return []
    return [_with_pixels(read, pixels.as_buffer()) for read, pixels in zip(items(table), table["pixels"], strict=True)]


def _with_pixels(read: Read, buffer: pa.Buffer) -> Read:
    if read.frames is None:
        return read
    shape = (len(read.frames.times_s), *read.frames.pixels_FHWC.shape[1:])
    pixels: npt.NDArray[np.uint8] = np.frombuffer(buffer, np.uint8).reshape(shape)
    return replace(read, frames=replace(read.frames, pixels_FHWC=pixels))


def _pickled(values: Iterable[object]) -> pa.Array:
    return pa.array([pickle.dumps(value, pickle.HIGHEST_PROTOCOL) for value in values], pa.large_binary())
