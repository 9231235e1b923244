"""Every frame, in the order in which the codec gives them: the way for streams whose packets do not say what they hold.

Old AVI files store no times of showing, VP8 has packets that show nothing, an edited stream may begin before its first
keyframe, of two recordings in one file (`cat a.ts b.ts`) the second begins its times anew, a palette or new headers
come with one packet and hold for those that follow. The first pass counts the frames and notes their times, the second
takes those that are wanted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from av.video.frame import VideoFrame

from mlb_batch.errors import RowError
from mlb_batch.video.container import opened
from mlb_batch.video.packets import Decoder, Trouble, real_packets
from mlb_batch.video.runs import Put, Video
from mlb_batch.video.sampling import Ints
from mlb_batch.video.timeline import Timeline

HELD_BACK = 16  # frames: no codec reorders more, so times that fall by more than these begin anew


def scan_frames(video: Video, announced: Timeline) -> tuple[Timeline, Trouble]:
    """The timeline of the frames that are really there; those lost to damage stand at its end as missing."""
    times, keys, trouble = [], [], Trouble()
    for frame in _frames(video, trouble):
        times.append(frame.pts)
        keys.append(frame.key_frame)
    shown = ~announced.missing[announced.shown]
    promised = announced.pts[announced.shown[~shown]]
    lost = max(0, int(shown.sum()) - len(times)) if trouble.errors else 0
    if not times and not len(promised) and not lost:
        raise RowError("corrupt", "the container opens, but holds no frame")
    pts = _known_times(times, announced)
    anew = _begins_anew(pts)
    # The codec's order is the order of showing, so the n-th frame is shown at the n-th smallest time.
    pts = np.sort(_going_on(pts, anew))
    step = _usual_step(pts)
    last = int(pts[-1]) if len(pts) else announced.origin
    pts = np.concatenate([pts, last + step * np.arange(1, lost + len(promised) + 1)])
    frames = len(pts)
    timeline = replace(
        announced,
        pts=pts,
        seek_time=pts,
        is_key=np.array([*keys, *[False] * (frames - len(keys))], bool),
        sealed=np.zeros(frames, bool),
        missing=np.arange(frames) >= len(times),
        place=np.full(frames, -1),
        length=np.zeros(frames, np.int64),
        shown=np.arange(frames),
        origin=int(pts[0]) if len(anew) else min(announced.origin, int(pts[0])),  # the smallest may be a later one's
        end=int(pts[-1]) + step,
    )
    return timeline, trouble


def read_positions(video: Video, wanted: Ints, put: Put) -> None:
    ranks = {int(position): rank for rank, position in enumerate(wanted)}
    for position, frame in enumerate(_frames(video, Trouble())):
        rank = ranks.pop(position, None)
        if rank is not None:
            put(rank, frame)
        if not ranks:
            return


def _frames(video: Video, trouble: Trouble) -> Iterator[VideoFrame]:
    with opened(video.source, video.limits) as (container, stream):
        decoder = Decoder(stream, trouble)
        for packet in real_packets(container, [stream], video.deadline):
            yield from decoder.feed(packet)
        yield from decoder.drain()


def _known_times(times: list[int | None], announced: Timeline) -> Ints:
    """In the codec's order."""
    there = np.flatnonzero([t is not None for t in times])
    if len(there) > 1:
        return _spread(there, np.array([times[n] for n in there], np.int64), len(times))
    known = announced.pts[announced.shown]
    return known[: len(times)] if len(times) <= len(known) else np.arange(len(times), dtype=np.int64)


def _spread(there: Ints, known: Ints, frames: int) -> Ints:
    """MPEG-PS tells the time of one frame of several: those between two such stand evenly, those behind go on alike."""
    steps = np.diff(known) / np.diff(there)
    usual = np.median(np.abs(steps))
    steps = np.append(np.where(steps > 0, steps, usual), usual)  # times that fall begin anew: nothing lies between
    each = np.arange(frames)
    before = np.maximum(np.searchsorted(there, each, side="right") - 1, 0)
    return np.rint(known[before] + (each - there[before]) * steps[before]).astype(np.int64)


def _begins_anew(pts: Ints) -> Ints:
    """The positions behind which the times fall and stay low; a single wrong time is none."""
    before, after = np.minimum(pts[:-3], pts[1:-2]), np.maximum(pts[2:-1], pts[3:])
    return np.flatnonzero(before - after > HELD_BACK * _usual_step(pts)) + 1


def _going_on(pts: Ints, anew: Ints) -> Ints:
    """The times, each recording's behind the end of the one before."""
    steps = np.diff(pts, prepend=pts[:1])
    steps[anew + 1] = _usual_step(pts)
    return pts[:1] + np.cumsum(steps)


def _usual_step(pts: Ints) -> int:
    return max(1, int(np.median(np.abs(np.diff(pts))))) if len(pts) > 1 else 1
