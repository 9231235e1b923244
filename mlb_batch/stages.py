"""The steps of the chain: rows in, rows out. The only place where whatever a row raises is caught.

A step never raises for a row: Ray Data would drop the whole block, or repeat it for ever. It raises for what no row is
to blame for (a bucket that refuses the job's credentials, a model that does not load), and that ends the job.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import ray

from mlb_batch.chain.strikes import STRIKES, Strikes
from mlb_batch.cost.allocate import Redundant
from mlb_batch.errors import JobError, RowError, UserError
from mlb_batch.rows import Constants, annotation_row, error_row
from mlb_batch.source import InputRow, Video, clip_spans
from mlb_batch.spec import JobSpec
from mlb_batch.video import FrameSize, Limits, Reader, Sampling
from mlb_batch.work import (
    Counts,
    History,
    Outcome,
    Read,
    Row,
    Work,
    in_storage,
    item_table,
    items,
    read_table,
    reads,
)

if TYPE_CHECKING:
    from mlb_batch.vlm.captioner import Answer, Captioner, Clip

DIED_READING = RowError("decoder_crash", f"{STRIKES} reading processes died on this video")
LOADING = "load the model"
LOADING_DEATHS = 5  # beyond the processes that are loading now; then the job is given up

T = TypeVar("T")


def attempt(step: Callable[[], T], otherwise: str) -> T | RowError:
    """What the step gives, or why it could not, as one of the classes of errors/ (`otherwise` for the unforeseen)."""
    try:
        return step()
    except RowError as error:
        return error
    except (JobError, UserError):
        raise
    except MemoryError as error:
        return RowError("out_of_memory", str(error) or "out of memory")
    except Exception as error:
        return RowError(otherwise, f"{type(error).__name__}: {error}")


class ReadFrames:
    """Work in; out the same with frames at the model's size, or with what is wrong with the video. One row a clip."""

    def __init__(
        self,
        spec: JobSpec,
        sampling: Sampling,
        size: FrameSize,
        strikes: Strikes,
        history: ray.ObjectRef[History] | None,
    ) -> None:
        """`history` is needed where the clips, and so their ids, are found here."""
        self._reader = Reader(sampling, size, Limits(video_s=spec.limits.video_s))
        self._clips, self._strikes = spec.clips, strikes
        self._history: History | None = ray.get(history) if history else None
        self._last: Read | None = None  # with frames

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        for work in items(table):
            yield from map(read_table, self._reads(work))

    def _reads(self, work: Work) -> Iterator[Read]:
        if self._clips is None or self._history is None or not work.asks or work.video.problem is not None:
            yield self._read(work)
            return
        begun_s, fetched = time.monotonic(), self._reader.bytes_fetched
        first, *others = self._cut(work, self._history)
        looked_s, looked = time.monotonic() - begun_s, self._reader.bytes_fetched - fetched
        read = self._read(first)  # it carries what it took to find them all
        yield replace(read, read_s=read.read_s + looked_s, bytes_fetched=read.bytes_fetched + looked)
        yield from map(self._read, others)

    def _cut(self, work: Work, history: History) -> list[Work]:
        """A long video becomes its clips; where they end is only known now."""
        video = work.video
        spans = self._watched(f"length {work.key}", partial(self._spans, video))
        if isinstance(spans, RowError):
            return [replace(work, video=replace(video, problem=spans), in_storage=in_storage(spans))]
        if not spans:
            return [work]  # nothing of it lies in the video, which is the error that reading it gives
        cut = [history.work(video, work.version, span) for span in spans]
        first, *others = [clip for clip in cut if clip.asks] or [replace(cut[0], counts=Counts())]
        stood = (clip.counts for clip in cut if not clip.asks)  # they ask for nothing, and ride on the first that does
        had = video.uri if any(clip.counts.skipped_done for clip in cut) else work.stands
        return [replace(first, before=sum(stood, work.before), stands=had), *others]

    def _spans(self, video: Video) -> list[tuple[float, float]]:
        return clip_spans(self._reader.lasting_s(video.uri), self._clips, video.start_s, video.end_s)

    def _read(self, work: Work) -> Read:
        if not work.asks:
            return Read(work)
        if work.video.problem is not None:
            return Read(work, problem=work.video.problem, in_storage=work.in_storage)
        if self._last is not None and self._last.work.clip == work.clip:
            return replace(self._last, work=work, read_s=0.0, bytes_fetched=0)
        read = partial(self._reader.read, work.video.uri, work.start_s, work.end_s, work.version or None)
        begun_s, fetched = time.monotonic(), self._reader.bytes_fetched
        frames = self._watched(f"read {work.key}", read)
        cost = Read(work, read_s=time.monotonic() - begun_s, bytes_fetched=self._reader.bytes_fetched - fetched)
        if isinstance(frames, RowError):
            return replace(cost, problem=frames, in_storage=in_storage(frames))
        self._last = replace(cost, frames=frames, in_storage="found")
        return self._last

    def _watched(self, key: str, step: Callable[[], T]) -> T | RowError:
        """What the step gives, or why it could not: also where process after process died of it."""
        if self._strikes.deaths([key])[0] >= STRIKES:
            return DIED_READING
        with self._strikes.watching([key]):
            return attempt(step, "corrupt")


class Caption:
    """Clips with frames in; out the rows for annotations/ and errors/, and the run's counts."""

    def __init__(self, load: Callable[[], Captioner], same: Constants, strikes: Strikes, actors: int) -> None:
        self._load, self._same, self._strikes = load, same, strikes
        self._most_loading = actors + LOADING_DEATHS
        self._captioner: Captioner | None = None
        self._idle_since_s = time.monotonic()

    def __call__(self, table: pa.Table) -> pa.Table:
        clips = reads(table)
        readable = [clip for clip in clips if clip.frames is not None]
        if readable and self._captioner is None:  # a run with nothing to do loads no model
            self._captioner = self._loaded()
            self._idle_since_s = time.monotonic()
        begun_s, before = time.monotonic(), self._without_result
        outcomes = [_unread(clip) for clip in clips if clip.frames is None]
        outcomes += self._annotate_all(readable)
        own = Outcome(model_s=time.monotonic() - begun_s, idle_s=begun_s - self._idle_since_s,
                      flops_without_result=self._without_result - before)  # fmt: skip
        self._idle_since_s = time.monotonic()
        return item_table([*outcomes, own])

    @property
    def _without_result(self) -> int:
        return self._captioner.without_result if self._captioner else 0

    def _loaded(self) -> Captioner:
        if self._strikes.deaths([LOADING])[0] >= self._most_loading:
            raise JobError(f"{LOADING_DEATHS} captioning processes died while they loaded the model: out of memory?")
        with self._strikes.watching([LOADING]):
            return self._load()

    def _annotate_all(self, clips: list[Read]) -> Iterator[Outcome]:
        """In one batch, but for those that were at work when an actor died: they go alone."""
        deaths = self._strikes.deaths([_key(clip) for clip in clips]) if clips else []
        yield from self._annotate([clip for clip, count in zip(clips, deaths, strict=True) if count == 0])
        for clip, count in zip(clips, deaths, strict=True):
            if count >= STRIKES:
                died = f"{count} captioning processes died or hung on this clip"
                poison = RowError("model_error", died, retryable=False)
                yield _unread(replace(clip, problem=poison))
            elif count > 0:
                yield from self._annotate([clip])

    def _annotate(self, clips: list[Read]) -> Iterator[Outcome]:
        if not clips:
            return
        batch, captioner = [_clip(clip) for clip in clips], self._captioner
        assert captioner is not None
        with self._strikes.watching([_key(clip) for clip in clips], lasting=True):
            answers = attempt(lambda: captioner.annotate(batch), "model_error")
        if not isinstance(answers, RowError):
            yield from (self._outcome(clip, some) for clip, some in zip(clips, answers, strict=True))
        elif len(clips) == 1:
            yield _unread(replace(clips[0], problem=answers))
        else:  # one of them fails them all: find it
            for clip in clips:
                yield from self._annotate([clip])

    def _outcome(self, clip: Read, answers: Sequence[Answer | RowError]) -> Outcome:
        work, frames = clip.work, clip.frames
        assert frames is not None
        annotations, errors = [], []
        selections: list[Row] = []
        for ask, answer in zip(work.asks, answers, strict=True):
            if isinstance(answer, RowError):
                errors.append(error_row(work, ask, answer))
            else:
                read_s = clip.read_s / len(work.asks)
                annotations.append(annotation_row(work, ask, frames, answer, read_s, self._same))
                selections += answer.selections
        return Outcome(annotations, errors, selections, **_of_reading(clip))


@dataclass(frozen=True)
class Measured:
    row: InputRow  # whose clip it is
    found: Redundant


class Measure:
    """Clips with frames in; out what allocation `content` is solved from: a clip's shape, and how much it repeats.

    What can't be measured, and what kills its actor, is left to the run proper, where it is an error row; `settle`
    allows for it.
    """

    def __init__(self, load: Callable[[], Captioner], strikes: Strikes) -> None:
        self._captioner, self._strikes = load(), strikes

    def __call__(self, table: pa.Table) -> pa.Table:
        clips = [clip for clip in reads(table) if clip.frames is not None]
        found = [self._measured(clip) for clip in clips]
        return item_table([
            Measured(clip.work.video.row, one)
            for clip, one in zip(clips, found, strict=True)
            if one is not None and not isinstance(one, RowError)
        ])  # fmt: skip

    def _measured(self, clip: Read) -> Redundant | RowError | None:
        key, measure = f"measure {clip.work.key}", partial(self._captioner.measure, _clip(clip))
        if self._strikes.deaths([key])[0] >= STRIKES:
            return None
        with self._strikes.watching([key], lasting=True):
            return attempt(measure, "model_error")


def _unread(clip: Read) -> Outcome:
    """What a clip comes to that has no frames, or no answers."""
    errors = [error_row(clip.work, ask, clip.problem) for ask in clip.work.asks] if clip.problem else []
    return Outcome(errors=errors, **_of_reading(clip))


def _of_reading(clip: Read) -> dict[str, Any]:
    work = clip.work
    return dict(counts=work.counts + work.before, read_s=clip.read_s, bytes_fetched=clip.bytes_fetched,
                in_storage=clip.in_storage, stands=work.stands)  # fmt: skip


def _key(clip: Read) -> str:
    return f"caption {clip.work.key}"


def _clip(clip: Read) -> Clip:
    from mlb_batch.vlm.captioner import Ask, Clip

    assert clip.frames is not None
    asks = [Ask(a.annotation_id, a.prompt.kind, a.prompt.text, a.prompt.choices) for a in clip.work.asks]
    return Clip(clip.frames.pixels_FHWC, tuple(asks))
