"""The source as a histogram of clip shapes: every prompt tokenized, every header probed, or those of a random sample.

Frames are never read. Which videos are in the sample hangs on their ids alone, so the same source gives the same plan.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

from mlb_batch.cost.schedule import ClipShape
from mlb_batch.errors import RowError
from mlb_batch.source import Prompt, Video, clip_spans
from mlb_batch.spec_parts import ClipsSpec, FramesSpec
from mlb_batch.storage import local_path
from mlb_batch.threads import Threads
from mlb_batch.video import Header, Limits, Prober, Several

PROBE_ALL = 5_000  # up to so many videos, every header is probed
SAMPLE = 2_000  # of more, these; as many as of few, where these say too little
# Each has a child process of its own, which takes a quarter of a second to start. Headers in storage are waited for.
PROBERS_LOCAL, PROBERS_REMOTE = 2, 16
VIDEOS_PER_PROBER = 50
MOST_MS = 86_400_000  # that a video counts for in a budget by the hour: a header can claim any duration
MOST_CACHED_PROMPTS = 100_000

Lengths = Callable[[Prompt], int]  # a prompt's tokens behind the visual ones; RowError where it can't be asked


@dataclass(frozen=True)
class Seen:
    """A video of the survey: its clips as the model will see them."""

    clips: tuple[ClipShape, ...]  # those with a prompt that can be asked
    asked: int  # annotations, those included that will end in errors/
    video_ms: int
    num_bytes: int
    readable: bool
    timed: bool  # its header says how long it is


@dataclass(frozen=True)
class Survey:
    videos: int  # that can be annotated; every one of them was counted
    problems: int  # annotations of rows that can't be annotated at all, as the source itself says
    seen: tuple[Seen, ...]

    @property
    def complete(self) -> bool:
        return len(self.seen) == self.videos

    def without_unreadable(self) -> Survey:
        """Videos whose headers can't be read have no clips to price, unless there are no others."""
        if not any(one.readable for one in self.seen):
            return self
        return replace(self, seen=tuple(one if one.readable else replace(one, clips=()) for one in self.seen))

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


def survey(videos: Iterable[Video], layout: Layout, lengths: Lengths, telling: Callable[[Survey], bool]) -> Survey:
    """`telling`: whether a sample says enough of all videos."""
    kept, count, problems = _counted(videos)
    cached = lru_cache(maxsize=MOST_CACHED_PROMPTS)(lengths)
    if count <= PROBE_ALL:
        return Survey(count, problems, _looked_at(kept, layout, cached))
    sample = Survey(count, problems, _looked_at(kept[:SAMPLE], layout, cached))
    if telling(sample):
        return sample
    return replace(sample, seen=sample.seen + _looked_at(kept[SAMPLE:], layout, cached))


def _looked_at(some: Sequence[Video], layout: Layout, lengths: Lengths) -> tuple[Seen, ...]:
    looks = looks_at([video.uri for video in some])
    return tuple(_seen(video, header, layout, lengths) for video, header in zip(some, looks, strict=True))


def _counted(videos: Iterable[Video]) -> tuple[list[Video], int, int]:
    """The videos that may be probed, in a fixed order: all of few, else those whose hashes are the smallest."""
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
    return [video for _, _, video in sorted(heap, key=lambda entry: -entry[0])], count, problems


def _lot(video: Video) -> int:
    """A number drawn by the video's identity."""
    name = f"{video.video_id}\0{video.start_s}\0{video.end_s}"
    return int.from_bytes(hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=8).digest(), "big")


def looks_at(uris: Sequence[str]) -> list[Header | None]:
    """What the headers say; None where they can't be read, which reading will find out and record.

    A video of several rows is looked at once.
    """
    each = list(dict.fromkeys(uris))
    most = PROBERS_LOCAL if all(local_path(uri) is not None for uri in uris) else PROBERS_REMOTE
    count = min(most, -(-len(each) // VIDEOS_PER_PROBER))
    with Several(partial(Prober, Limits()), count) as probers, Threads(count) as threads:
        seen = dict(zip(each, threads.map(partial(_look, probers), each), strict=True))
    return [seen[uri] for uri in uris]


def _look(probers: Several[Prober], uri: str) -> Header | None:
    try:
        with probers.one() as prober:
            return prober.probe(uri)
    except RowError:
        return None


def _seen(video: Video, header: Header | None, layout: Layout, lengths: Lengths) -> Seen:
    suffixes = tuple(sorted(_lengths_of(video.prompts, lengths)))
    frames = list(expected_frames(video, header, layout))
    clips = [ClipShape(count, layout.side, layout.side, layout.prefix, layout.trailer, suffixes) for count in frames]
    return Seen(
        clips=tuple(clips) if suffixes else (),
        asked=max(1, len(frames)) * len(video.prompts),
        video_ms=min(MOST_MS, round(1000 * sum(end - start for start, end in _spans(video, header, None)))),
        num_bytes=header.num_bytes if header else 0,
        readable=header is not None,
        timed=header is not None and bool(header.duration_s),
    )


def _lengths_of(prompts: tuple[Prompt, ...], lengths: Lengths) -> Iterator[int]:
    for prompt in prompts:
        try:
            yield lengths(prompt)
        except RowError:
            continue  # ends in errors/ and costs nothing


def _spans(video: Video, header: Header | None, clips: ClipsSpec | None) -> list[tuple[float, float]]:
    """A video's clips by its header; empty where that has no duration, or nothing of it is asked for or can be cut."""
    if header is None or not header.duration_s:
        return []
    try:
        return clip_spans(header.duration_s, clips, video.start_s, video.end_s)
    except RowError:
        return []  # one row, which will end in errors/


def expected_frames(video: Video, header: Header | None, layout: Layout) -> Iterator[int]:
    """Frames of each clip, as the sampling will choose them if the header tells the truth; the sampling's full count
    where that names neither a duration nor a rate.
    """
    whole = layout.clips is None and not video.start_s and video.end_s is None
    if header is None:
        yield layout.frames.count
    elif whole:
        yield _sampled(header.frames or _between(header, 0.0, header.duration_s), header.duration_s, layout.frames)
    else:
        spans: Sequence[tuple[float, float | None]] = _spans(video, header, layout.clips)
        if not header.duration_s:
            spans = [(video.start_s or 0.0, None)]
        for start_s, end_s in spans:  # none where nothing of it can be cut, which will end in errors/
            length_s = None if end_s is None else end_s - start_s
            yield _sampled(_between(header, start_s, end_s), length_s, layout.frames)


def _between(header: Header, start_s: float, end_s: float | None) -> int | None:
    """Frames shown in [start, end), at a constant rate."""
    if not header.average_fps or not end_s:
        return None
    return math.ceil(end_s * header.average_fps - 1e-6) - math.ceil(start_s * header.average_fps - 1e-6)


def _sampled(there: int | None, length_s: float | None, wanted: FramesSpec) -> int:
    """Of so many frames in so many seconds; without either, the most that the sampling takes."""
    limits = [wanted.count]
    if there is not None:
        limits.append(there)
    if wanted.fps is not None and length_s is not None:
        limits.append(math.ceil(length_s * wanted.fps - 1e-6))
    return max(1, min(limits))
