"""The wanted frames by the shortest way: from the keyframe before each, over or past everything else.

A run is a stretch of packets that is read without a break: from a wanted frame's keyframe to the frame itself, merged
with the next run where they touch. Between runs packets are stepped over unread, or, where the gap is long, jumped
over by the container's own index. A jump is checked against the timeline: it must land on a known packet, not too far.
Inside a run, what no other frame leans on is spared, as long as nothing is damaged.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import chain, count
from typing import Any, TypeAlias

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from mlb_batch.video.clock import Deadline
from mlb_batch.video.container import Source, opened
from mlb_batch.video.packets import Decoder, Trouble, real_packets
from mlb_batch.video.sampling import Ints
from mlb_batch.video.timeline import Timeline
from mlb_batch.video.values import Limits

JUMP_PACKETS = 300  # 100 to 1,000 read equally fast; never jumping is several times slower on a day-long video

Numbered: TypeAlias = "Iterator[tuple[int, Packet[Any]]]"  # with their ordinals
Put = Callable[[int, VideoFrame], None]  # (rank among the wanted frames, the frame)


class NotAsListed(Exception):
    """The frames are not those that the packets announced; only reading all of them tells."""


class _CannotJump(Exception):
    """The container did not go where it was sent."""


@dataclass(frozen=True)
class Video:
    source: Source
    limits: Limits
    deadline: Deadline
    by_index: bool = False  # the timeline was made without looking into the packets: what comes has to be what it says


@dataclass
class Run:
    first: int
    last: int


def plan_runs(timeline: Timeline, ordinals: Ints) -> list[Run]:
    runs: list[Run] = []
    for ordinal in np.sort(ordinals).tolist():
        key = timeline.starting_key(ordinal)
        if runs and key <= runs[-1].last + 1:
            runs[-1].last = ordinal
        else:
            runs.append(Run(key, ordinal))
    return runs


def read_runs(video: Video, timeline: Timeline, wanted: Ints, anew: Callable[[], Put]) -> Trouble:
    """Puts each wanted frame that can be read. Raises NotAsListed where the frames contradict the timeline.

    `anew`: begins a pass over the video, whose frames stand in place of those that the pass before has put.
    """
    assert timeline.trusted
    jump = spare = True
    while True:
        trouble = Trouble()
        try:
            _read_runs(video, timeline, wanted, anew(), trouble, jump, spare)
            return trouble
        except _CannotJump:
            jump = False
        except NotAsListed:
            if not trouble.spared:
                raise
            spare = False


def _read_runs(
    video: Video, timeline: Timeline, wanted: Ints, put: Put, trouble: Trouble, jump: bool, spare: bool
) -> None:
    ordinals = timeline.shown[wanted]
    readable = ~(timeline.missing[ordinals] | timeline.sealed[ordinals])
    ranks = {int(timeline.pts[ordinals[rank]]): int(rank) for rank in np.flatnonzero(readable)}
    with opened(video.source, video.limits) as (container, stream):
        decoder = Decoder(stream, trouble)
        doubtful = timeline.all_keys and not stream.codec_context.codec.intra_only
        cursor = _Cursor(container, stream, timeline, video.deadline)
        for run in plan_runs(timeline, ordinals[readable]):
            packets = cursor.between(run.first, run.last, jump)
            packets = _as_listed(packets, run, timeline) if video.by_index else packets
            needed = ranks.keys() if spare else None
            frames = _in_order(_frames_of(run, packets, decoder, timeline, needed))
            for frame in _all_keys(frames) if doubtful else frames:
                if frame.pts in ranks:
                    put(ranks.pop(frame.pts), frame)
            if trouble.spared and trouble.errors:  # what stands in for a lost picture may come from any other
                raise NotAsListed
    if ranks and not trouble.errors:
        raise NotAsListed


def _as_listed(packets: Numbered, run: Run, timeline: Timeline) -> Numbered:
    for ordinal, packet in packets:
        if packet.pos != timeline.place[ordinal] or packet.size != timeline.length[ordinal]:
            raise NotAsListed
        if ordinal == run.first and not packet.is_keyframe:
            raise NotAsListed
        yield ordinal, packet


def _frames_of(
    run: Run, packets: Numbered, decoder: Decoder, timeline: Timeline, needed: Collection[int] | None
) -> Iterator[VideoFrame]:
    """All frames of a run, or at least those with these times."""
    latest = int(timeline.pts[run.first])
    for ordinal, packet in packets:
        if timeline.sealed[ordinal]:
            continue
        pts = int(timeline.pts[ordinal])
        # The frames of an open GOP that are shown before its keyframe lean on what was not read: their failing is no
        # damage. They are read all the same, since some codecs count frames.
        astray = run.first > 0 and pts < timeline.pts[run.first]
        # Spared is only what is shown before a frame that came earlier: where nothing is, the times may be those of
        # decoding, and the order in which all frames come out is what tells.
        spare = needed is not None and pts not in needed and timeline.pts[run.first] < pts < latest
        yield from decoder.feed(packet, expected_to_fail=bool(astray), spare=bool(spare))
        latest = max(latest, pts)
    yield from decoder.drain()


def _in_order(frames: Iterator[VideoFrame]) -> Iterator[VideoFrame]:
    """Frames leave a codec in the order of showing; where their times say otherwise, the times are wrong."""
    last = None
    for frame in frames:
        if frame.pts is None or (last is not None and frame.pts <= last):
            raise NotAsListed
        last = frame.pts
        yield frame


def _all_keys(frames: Iterator[VideoFrame]) -> Iterator[VideoFrame]:
    """H.263 in AVI, say, has every packet called a keyframe: only its frames tell which of them lean on others."""
    for frame in frames:
        if not frame.key_frame:
            raise NotAsListed
        yield frame


class _Cursor:
    """The stream's packets by ordinal, forward."""

    def __init__(self, container: InputContainer, stream: VideoStream, timeline: Timeline, deadline: Deadline) -> None:
        self._container, self._stream, self._timeline, self._deadline = container, stream, timeline, deadline
        self._packets = self._from_here(0)
        self._next = 0

    def between(self, first: int, last: int, jump: bool) -> Numbered:
        if jump and first - self._next > JUMP_PACKETS:
            self._packets = self._jump(first)
        for ordinal, packet in self._packets:
            self._next = ordinal + 1
            if ordinal >= first:
                yield ordinal, packet
            if ordinal >= last:
                return

    def _from_here(self, ordinal: int) -> Numbered:
        return zip(count(ordinal), real_packets(self._container, [self._stream], self._deadline), strict=False)

    def _jump(self, first: int) -> Numbered:
        """To the packet, or somewhat before it."""
        try:
            self._container.seek(int(self._timeline.seek_time[first]), stream=self._stream)
        except av.FFmpegError as error:
            raise _CannotJump from error
        packet = next(real_packets(self._container, [self._stream], self._deadline), None)
        if packet is None or packet.pts is None:
            raise _CannotJump
        landed = np.flatnonzero(self._timeline.pts == packet.pts)
        if len(landed) != 1 or landed[0] > first:
            raise _CannotJump
        ordinal = int(landed[0])
        return chain([(ordinal, packet)], self._from_here(ordinal + 1))
