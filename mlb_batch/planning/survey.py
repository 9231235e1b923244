"""The source as a histogram of clip shapes: every prompt tokenized, every header probed, or those of a random sample.

Frames are never read. Which videos are in the sample hangs on their ids alone, so the same source gives the same plan.
"""

from __future__ import annotations

import hashlib
import heapq
import io
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

from mlb_batch.cost.schedule import ClipShape
from mlb_batch.errors import RowError
from mlb_batch.source import Prompt, Video, clip_spans
from mlb_batch.spec import ClipsSpec, FramesSpec
from mlb_batch.video import Header, open_uri, probe

PROBE_ALL = 5_000  # up to so many videos, every header is probed
SAMPLE = 2_000  # of more, these
PROBE_THREADS = 16  # headers wait for storage far more than for a core
MOST_CACHED_PROMPTS = 100_000

Lengths = Callable[[Prompt], int]  # a prompt's tokens behind the visual ones; RowError where it can't be asked


@dataclass(frozen=True)
class Look:
    """What a header says. Without a duration or a rate the sampling's full count is planned for."""

    duration_s: float | None
    fps: float | None
    frames: int | None
    num_bytes: int


@dataclass(frozen=True)
class Seen:
    """A video of the survey: its clips as the model will see them."""

    clips: tuple[ClipShape, ...]  # those with a prompt that can be asked
    asked: int  # annotations, those included that will end in errors/
    video_ms: int
    num_bytes: int
    readable: bool


@dataclass(frozen=True)
class Survey:
    videos: int  # that can be annotated; every one of them was counted
    problems: int  # annotations of rows that can't be annotated at all, as the source itself says
    seen: tuple[Seen, ...]

    @property
    def complete(self) -> bool:
        return len(self.seen) == self.videos

    def histogram(self) -> Counter[ClipShape]:
        return Counter(clip for one in self.seen for clip in one.clips)


@dataclass(frozen=True)
class Layout:
    """How a video becomes clip shapes, besides its header and its prompts."""

    frames: FramesSpec
    clips: ClipsSpec | None
    side: int
    prefix: int
    trailer: int


def survey(videos: Iterable[Video], layout: Layout, lengths: Lengths) -> Survey:
    kept, count, problems = _counted(videos)
    cached = lru_cache(maxsize=MOST_CACHED_PROMPTS)(lengths)
    with ThreadPoolExecutor(PROBE_THREADS) as pool:
        looks = pool.map(look, [video.uri for video in kept])
        seen = tuple(_seen(video, header, layout, cached) for video, header in zip(kept, looks, strict=True))
    return Survey(count, problems, seen)


def _counted(videos: Iterable[Video]) -> tuple[list[Video], int, int]:
    """The videos to probe, in a fixed order: all of few, else those whose hashes are the smallest."""
    heap: list[tuple[int, int, Video]] = []
    count = problems = 0
    for video in videos:
        if video.problem is not None:
            problems += len(video.prompts)
            continue
        count += 1
        entry = (-_lot(video), count, video)
        if len(heap) < PROBE_ALL:
            heapq.heappush(heap, entry)
        elif entry[0] > heap[0][0]:
            heapq.heapreplace(heap, entry)
    chosen = [video for _, _, video in sorted(heap, key=lambda entry: -entry[0])]
    return chosen if count <= PROBE_ALL else chosen[:SAMPLE], count, problems


def _lot(video: Video) -> int:
    """A number drawn by the video's identity."""
    name = f"{video.video_id}\0{video.start_s}\0{video.end_s}"
    return int.from_bytes(hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=8).digest(), "big")


def look(uri: str) -> Look | None:
    """What the headers say; None where they can't be read, which reading will find out and record."""
    try:
        with open_uri(uri) as file:
            header: Header = probe(file)
            return Look(header.duration_s, header.average_fps, header.frames, file.seek(0, io.SEEK_END))
    except RowError:
        return None


def _seen(video: Video, header: Look | None, layout: Layout, lengths: Lengths) -> Seen:
    suffixes = tuple(sorted(_lengths_of(video.prompts, lengths)))
    frames = list(expected_frames(video, header, layout))
    clips = [ClipShape(count, layout.side, layout.side, layout.prefix, layout.trailer, suffixes) for count in frames]
    return Seen(
        clips=tuple(clips) if suffixes else (),
        asked=len(frames) * len(video.prompts),
        video_ms=round(1000 * sum(end - start for start, end in _spans(video, header, None))),
        num_bytes=header.num_bytes if header else 0,
        readable=header is not None,
    )


def _lengths_of(prompts: tuple[Prompt, ...], lengths: Lengths) -> Iterator[int]:
    for prompt in prompts:
        try:
            yield lengths(prompt)
        except RowError:
            continue  # ends in errors/ and costs nothing


def _spans(video: Video, header: Look | None, clips: ClipsSpec | None) -> list[tuple[float, float]]:
    """A video's clips by its header; empty where that has no duration, or nothing of it is asked for."""
    if header is None or not header.duration_s:
        return []
    return clip_spans(header.duration_s, clips, video.start_s, video.end_s)


def expected_frames(video: Video, header: Look | None, layout: Layout) -> Iterator[int]:
    """Frames of each clip, as the sampling will choose them if the header tells the truth."""
    whole = layout.clips is None and not video.start_s and video.end_s is None
    if header is None:
        yield layout.frames.count
    elif whole:
        yield _sampled(header.frames or _between(header, 0.0, header.duration_s), header.duration_s, layout.frames)
    else:
        spans: Sequence[tuple[float, float | None]] = _spans(video, header, layout.clips)
        for start_s, end_s in spans or [(video.start_s or 0.0, header.duration_s)]:
            length_s = None if end_s is None else end_s - start_s
            yield _sampled(_between(header, start_s, end_s), length_s, layout.frames)


def _between(header: Look, start_s: float, end_s: float | None) -> int | None:
    """Frames shown in [start, end), at a constant rate."""
    if not header.fps or not end_s:
        return None
    return math.ceil(end_s * header.fps - 1e-6) - math.ceil(start_s * header.fps - 1e-6)


def _sampled(there: int | None, length_s: float | None, wanted: FramesSpec) -> int:
    """Of so many frames in so many seconds; without either, the most that the sampling takes."""
    limits = [wanted.count]
    if there is not None:
        limits.append(there)
    if wanted.fps is not None and length_s is not None:
        limits.append(math.ceil(length_s * wanted.fps - 1e-6))
    return max(1, min(limits))
