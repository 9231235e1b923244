"""Reads the wanted frames of one video: container -> timeline -> sampling -> runs of packets -> frames -> model size.

The frames are exactly those that a full sequential read gives, and no more is read than they need: each wanted frame is
reached from the keyframe before it, runs that touch are read through, and what lies between runs is never decoded, only
stepped over, or jumped over by the container's index where that is shorter. Where the packets' times turn out not to be
the frames' times (old AVI, invisible frames), every frame is read, in order.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import av
import numpy as np
from av.video.frame import VideoFrame

from mlb_batch.errors import RowError
from mlb_batch.video.clock import Deadline, deadline_of
from mlb_batch.video.container import Source, size_of
from mlb_batch.video.known import Known
from mlb_batch.video.packets import Trouble
from mlb_batch.video.parts import Parts
from mlb_batch.video.ranges import needed
from mlb_batch.video.resize import ToRGB, resize, upright
from mlb_batch.video.runs import NotAsListed, Put, Video, read_runs
from mlb_batch.video.sampling import Ints, clip_frames, pick
from mlb_batch.video.straight import read_positions
from mlb_batch.video.timeline import Timeline
from mlb_batch.video.values import Frames, FrameSize, Limits, Pixels, Sampling

Allocate = Callable[[tuple[int, ...]], Pixels]

READABLE_SHARE = 0.25  # of the wanted frames; below it a row is an error (truncated), from it on it is partial


def _new_array(shape: tuple[int, ...]) -> Pixels:
    return np.empty(shape, np.uint8)


@dataclass(frozen=True)
class Wanted:
    """A clip [start_s, end_s) of a video: which frames of it, how large, and where the pixels go."""

    sampling: Sampling
    size: FrameSize
    limits: Limits
    start_s: float | None = None
    end_s: float | None = None
    allocate: Allocate = _new_array


def read_frames(source: Source, clip: Wanted, known: Known | None = None) -> Frames:
    """The sampled frames of a clip. Raises RowError.

    Blocks up to `limits.video_s`, and for ever in a hanging codec: on files of others use `Reader`. Of `Parts`, what is
    needed is brought. `known`: what earlier clips of the same file found out.
    """
    deadline, known = deadline_of(clip.limits, source), known or Known()
    if isinstance(source, Parts):
        frames = _from_parts(clip, source, deadline, known)
        if frames is not None:
            return frames
        source = source.bring_all()
    return _from_whole(clip, Video(source, clip.limits, deadline), known)


def _from_parts(clip: Wanted, parts: Parts, deadline: Deadline, known: Known) -> Frames | None:
    """None where the file is not as its index says, or has none: then only the whole of it tells."""
    timeline = known.index(parts, clip.limits, deadline)
    if timeline is None:
        return None
    wanted = _wanted(timeline, clip)
    parts.bring(needed(timeline, wanted, parts.size))
    film = _Film(clip.size, clip.allocate, len(wanted))
    video = Video(parts.path, clip.limits, deadline, by_index=True)
    known.needs_whole = not _came_as_listed(video, timeline, wanted, film)
    return None if known.needs_whole else _frames(clip, parts.path, timeline, wanted, film)


def _came_as_listed(video: Video, timeline: Timeline, wanted: Ints, film: _Film) -> bool:
    """Whether every wanted frame was where the index says, and undamaged."""
    try:
        trouble = read_runs(video, timeline, wanted, film.anew)
    except NotAsListed:
        return False
    except RowError as error:
        if error.error_class == "timeout":
            raise
        return False
    return not trouble.errors and len(film.ranks) == len(wanted)


def _from_whole(clip: Wanted, video: Video, known: Known) -> Frames:
    timeline = known.packets(video)
    if timeline.trusted:
        wanted = _wanted(timeline, clip)
        film = _Film(clip.size, clip.allocate, len(wanted))
        with suppress(NotAsListed):
            trouble = read_runs(video, timeline, wanted, film.anew)
            _refuse_unreadable(timeline, wanted, film, trouble)
            return _frames(clip, video.source, timeline, wanted, film)
    timeline, trouble = known.frames(video)
    wanted = _wanted(timeline, clip)
    film = _Film(clip.size, clip.allocate, len(wanted))
    read_positions(video, wanted, film.anew())
    _refuse_unreadable(timeline, wanted, film, trouble)
    return _frames(clip, video.source, timeline, wanted, film)


def _frames(clip: Wanted, source: Source, timeline: Timeline, wanted: Ints, film: _Film) -> Frames:
    got = film.ranks
    return Frames(
        pixels_FHWC=film.pixels_FHWC(),
        times_s=tuple(timeline.times_s[wanted[got]].tolist()),
        wanted=len(wanted),
        duration_s=_clip_s(timeline, clip.start_s, clip.end_s),
        partial=film.flawed or len(got) < len(wanted),
        bytes_read=size_of(source),
    )


def _wanted(timeline: Timeline, clip: Wanted) -> Ints:
    """Positions in `timeline.shown`. Raises RowError where the clip is not in the video."""
    start_s, end_s, times_s = clip.start_s, clip.end_s, timeline.times_s
    frames = clip_frames(times_s, timeline.duration_s, start_s, end_s)
    if len(frames) == 0:
        raise RowError("truncated", f"the clip starts at {start_s} s, the video ends at {timeline.duration_s:.3f} s")
    end_s = timeline.duration_s if end_s is None else min(end_s, timeline.duration_s)
    wanted = pick(times_s, timeline.is_key[timeline.shown], frames, start_s or 0.0, end_s, clip.sampling)
    return wanted if len(wanted) else frames[:1]  # a clip without a keyframe: the frame that it begins with


def _clip_s(timeline: Timeline, start_s: float | None, end_s: float | None) -> float:
    end = timeline.duration_s if end_s is None else min(end_s, timeline.duration_s)
    return end - max(0.0, start_s or 0.0)


class _Film:
    """Where the wanted frames go, at the model's size, as they are read (which is not in order of time)."""

    def __init__(self, size: FrameSize, allocate: Allocate, wanted: int) -> None:
        self._size = size
        self._allocate = allocate
        self._wanted = wanted
        self._to_rgb = ToRGB()
        self._array_FHWC: Pixels | None = None

    def anew(self) -> Put:
        """Where a pass over the video puts its frames. What an earlier one has put is forgotten."""
        self._got: set[int] = set()
        self.flawed = False
        self.unconvertible = False
        return self._put

    def _put(self, rank: int, frame: VideoFrame) -> None:
        size = self._size
        if self._array_FHWC is not None and size.crop is None:
            # should the resolution change on the way, the first frame's stands
            size = replace(size, resize=self._array_FHWC.shape[1:3])
        try:
            pixels_HWC = resize(upright(self._to_rgb(frame), frame), size)
            if self._array_FHWC is None:
                self._array_FHWC = self._allocate((self._wanted, *pixels_HWC.shape))
        except MemoryError as error:
            raise RowError("out_of_memory", f"a {frame.width}x{frame.height} frame does not fit") from error
        except av.FFmpegError:  # not read: a format that a damaged header made up, or colours that swscale doesn't know
            self.unconvertible = True
            return
        self._array_FHWC[rank] = pixels_HWC
        self._got.add(rank)
        self.flawed |= frame.is_corrupt  # a picture of which FFmpeg had not all, and made up the rest

    @property
    def ranks(self) -> list[int]:
        return sorted(self._got)

    def pixels_FHWC(self) -> Pixels:
        """The frames that were read, without gaps."""
        assert self._array_FHWC is not None
        for row, rank in enumerate(self.ranks):
            if row != rank:
                self._array_FHWC[row] = self._array_FHWC[rank]
        return self._array_FHWC[: len(self._got)]


def _refuse_unreadable(timeline: Timeline, wanted: Ints, film: _Film, trouble: Trouble) -> None:
    got = len(film.ranks)
    if got and got >= READABLE_SHARE * len(wanted):
        return
    ordinals = timeline.shown[wanted]
    message = f"{got} of {len(wanted)} wanted frames could be read"
    if timeline.sealed[ordinals].any():
        raise RowError("encrypted", f"the video is encrypted: {message}")
    if timeline.missing[ordinals].any():
        raise RowError("truncated", f"the end of the file is missing: {message}")
    if trouble.refused_size:
        raise RowError("too_large", "the pictures have more pixels than the limit allows")
    if trouble.unsupported:
        raise RowError("unsupported_codec", f"FFmpeg cannot read this kind of the codec: {message}")
    if film.unconvertible and not trouble.errors:
        raise RowError("unsupported_codec", f"FFmpeg cannot turn the video's colours into RGB: {message}")
    raise RowError("truncated" if got else "corrupt", f"the video's data are damaged: {message}")
