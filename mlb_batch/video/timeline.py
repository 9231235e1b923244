"""Every packet of a video stream, without reading a frame: what is shown when, what each frame needs, what is missing.

Made by one pass over the container's packets, about 4 microseconds each, which is exact for every container, with or
without an index. Frames that the container promises and the file does not hold (a file that was cut) stand at the end
as `missing`, so that sampling spreads over what the video was, and the lost part is counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any, NamedTuple

import av
import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from mlb_batch.errors import RowError
from mlb_batch.video.clock import Deadline
from mlb_batch.video.packets import real_packets
from mlb_batch.video.sampling import Floats, Ints

Bools = npt.NDArray[np.bool_]

# Formats whose headers state a duration of their own; elsewhere FFmpeg estimates one from the very data that are left.
STATES_DURATION = {"matroska,webm", "flv", "asf", "ivf", "rm", "mxf"}
# Formats that store no presentation times: with B-frames, a packet's time is then not its frame's.
TIMELESS = {"avi", "mpegvideo", "m4v"}
CUT_SHARE = 0.05  # headers are this much off in healthy files
LIE_FACTOR = 20  # a header that claims more than this many times what is there is wrong, not cut


@dataclass(frozen=True)
class Timeline:
    """One entry a packet, in the file's order (`ordinal`); `shown` orders those that become frames by time."""

    pts: Ints
    seek_time: Ints  # what the container's index files the packet under
    is_key: Bools
    sealed: Bools  # encrypted
    missing: Bools  # promised by the container, not in the file
    place: Ints  # in the file; -1 where unknown
    length: Ints
    shown: Ints  # ordinals of the frames, by time
    time_base: Fraction
    origin: int  # the pts that is the video's start
    end: int  # the pts at which the last frame ends
    trusted: bool  # packets' times are frames' times, a keyframe can be begun at; else only reading every frame tells

    @property
    def times_s(self) -> Floats:
        """Rounded once: 3.7 is 3.7, and so is in the clip that starts there."""
        ticks = (self.pts[self.shown] - self.origin).astype(np.float64)
        return ticks * self.time_base.numerator / self.time_base.denominator

    @property
    def duration_s(self) -> float:
        return float((self.end - self.origin) * self.time_base)

    @property
    def all_keys(self) -> bool:
        """By what is called a keyframe: so is everything where there are no others, and where nobody looked."""
        return bool(self.is_key[~self.missing].all())

    def starting_key(self, ordinal: int) -> int:
        """From where to read so that this frame comes out as a sequential read gives it.

        Frames that follow a keyframe in the file but are shown before it (open GOP) lean on the one before.
        """
        before = np.flatnonzero(self.is_key[: ordinal + 1] & (self.pts[: ordinal + 1] <= self.pts[ordinal]))
        return int(before[-1]) if len(before) else 0


class _Entry(NamedTuple):
    """What is kept of a packet."""

    pts: int | None
    dts: int | None = None
    duration: int = 0
    is_key: bool = False
    hidden: bool = False  # decoded, never shown: an edit list cuts it away
    sealed: bool = False
    place: int = -1
    length: int = 0
    resets: bool = False  # brings what the frames from here on are read with, and who comes from elsewhere lacks
    missing: bool = False


def scan(
    container: InputContainer, stream: VideoStream, deadline: Deadline, cut_from_s: float | None = None
) -> Timeline:
    """Reads the whole container once. Raises RowError where it neither holds nor promises a frame.

    `cut_from_s`: how long it was before it was cut, where FFmpeg does not say.
    """
    indexed = len(stream.index_entries)
    entries, last_end_s = _present(container, stream, deadline)
    trusted = _times_are_the_frames(entries, container, stream) and not any(entry.resets for entry in entries)
    if cut_from_s is None:
        entries += _promised(container, stream, entries, last_end_s, indexed)
    else:
        entries += _promised_by_duration(container, stream, entries, last_end_s, cut_from_s)
    if all(entry.hidden for entry in entries):
        raise RowError("corrupt", "the container opens, but holds no frame")
    return _timeline(entries, container, stream, trusted)


def _present(container: InputContainer, stream: VideoStream, deadline: Deadline) -> tuple[list[_Entry], float]:
    """The video's packets, and when the last packet of any stream that was looked at ends."""
    states_duration = container.format.name in STATES_DURATION
    entries: list[_Entry] = []
    last_end_s = 0.0
    half = 0  # packets at the end of which the file holds only a part
    headers = stream.codec_context.extradata
    for packet in real_packets(container, container.streams if states_duration else [stream], deadline):
        duration = packet.duration or 0
        if packet.pts is not None:
            last_end_s = max(last_end_s, float((packet.pts + duration) * packet.time_base))
        if packet.stream_index == stream.index:
            half = half + 1 if packet.is_corrupt else 0
            sealed, resets = _side_data(packet, headers)
            at = -1 if packet.pos is None else packet.pos
            said = (packet.pts, packet.dts, duration, packet.is_keyframe, packet.is_discard)
            entries.append(_Entry(*said, sealed, at, packet.size, resets))
    if all(entry.pts is None for entry in entries):  # MXF, of H.264, where its index is missing, which is its end
        last_end_s = float(sum(entry.duration for entry in entries) * _ticks(stream))
    return entries[: len(entries) - half], last_end_s


def _side_data(packet: Packet[Any], headers: bytes | None) -> tuple[bool, bool]:
    """`sealed` and `resets`: by a palette, or by headers that are not the first ones (a live stream repeats those)."""
    if next(packet.iter_sidedata(), None) is None:
        return False, False  # asking by name takes as long as all else that is done with a packet
    anew = packet.has_sidedata("new_extradata") and bytes(packet.get_sidedata("new_extradata")) != headers
    return packet.has_sidedata("encryption_info"), anew or packet.has_sidedata("palette")


def _times_are_the_frames(entries: list[_Entry], container: InputContainer, stream: VideoStream) -> bool:
    """Whether each packet's time is one frame's time. Where not, only reading every frame tells what there is."""
    pts = [entry.pts for entry in entries]
    dts = [entry.dts for entry in entries if entry.dts is not None]
    begins_anew = any(later < earlier for earlier, later in pairwise(dts))  # recordings one behind the other
    if None in pts or len(set(pts)) < len(pts) or begins_anew:
        return False
    name, codec = container.format.name, stream.codec_context
    # MXF says of H.264 in which order frames are shown, and not by how much later than they are decoded.
    stores_order_only = name in TIMELESS or (name == "mxf" and codec.name == "h264")
    return not (stores_order_only and codec.has_b_frames)


def _promised(
    container: InputContainer, stream: VideoStream, entries: list[_Entry], last_end_s: float, indexed: int
) -> list[_Entry]:
    """The frames that the headers claim beyond what the file holds."""
    if container.format.name.startswith("mov,"):
        by_index = _promised_by_index(stream, len(entries))
        if stream.frames >= len(stream.index_entries) or stream.duration is None:
            return by_index
        # in fragments, each with an index of its own; the list of them (sidx) says when the last one ends
        claimed_s = float(stream.duration * _ticks(stream))
        return max(by_index, _promised_by_duration(container, stream, entries, last_end_s, claimed_s), key=len)
    if container.format.name == "avi" and indexed < len(entries):  # its index is its end, which is gone
        claimed = min(stream.frames, LIE_FACTOR * len(entries))
        return [_Entry(n, missing=True) for n in range(len(entries), claimed)]
    if container.format.name not in STATES_DURATION or container.duration is None:
        return []
    return _promised_by_duration(container, stream, entries, last_end_s, container.duration / av.time_base)


def _promised_by_index(stream: VideoStream, there: int) -> list[_Entry]:
    index = stream.index_entries
    return [
        _Entry(index[i].timestamp, is_key=index[i].is_keyframe, hidden=index[i].is_discard, missing=True)
        for i in range(there, len(index))
    ]


def _promised_by_duration(
    container: InputContainer, stream: VideoStream, entries: list[_Entry], last_end_s: float, claimed_s: float
) -> list[_Entry]:
    """`claimed_s`: when the last frame ends, by the headers."""
    there_s = last_end_s - (container.start_time or 0) / av.time_base
    lost_s = claimed_s - last_end_s
    if len(entries) < 2 or not CUT_SHARE * (there_s + lost_s) < lost_s < LIE_FACTOR * there_s:
        return []
    step_s = there_s / len(entries)
    return [
        _Entry(round((last_end_s + i * step_s) / _ticks(stream)), missing=True) for i in range(int(lost_s / step_s))
    ]


def _timeline(entries: list[_Entry], container: InputContainer, stream: VideoStream, trusted: bool) -> Timeline:
    time_base = _ticks(stream)
    pts = _filled([entry.pts if entry.pts is not None else entry.dts for entry in entries])
    missing = np.array([entry.missing for entry in entries])
    if missing.any() and not missing.all():  # what is lost is the end, whatever its times claim
        pts[missing] = np.maximum(pts[missing], pts[~missing].max() + 1 + np.arange(missing.sum()))
    visible = np.flatnonzero([not entry.hidden for entry in entries])
    shown = visible[np.argsort(pts[visible], kind="stable")]
    start = int(pts[shown[0]])
    if container.start_time is not None:
        start = min(start, round(Fraction(container.start_time, av.time_base) / time_base))
    last = int(shown[-1])
    return Timeline(
        pts=pts,
        seek_time=_seek_times(entries, pts, container),
        is_key=np.array([entry.is_key for entry in entries]),
        sealed=np.array([entry.sealed for entry in entries]),
        missing=missing,
        place=np.array([entry.place for entry in entries], np.int64),
        length=np.array([entry.length for entry in entries], np.int64),
        shown=shown,
        time_base=time_base,
        origin=start,
        end=int(pts[last]) + (entries[last].duration or _usual_step(pts[shown], stream)),
        trusted=trusted,
    )


def _ticks(stream: VideoStream) -> Fraction:
    """The stream's unit of time, in seconds; every opened stream has one."""
    assert stream.time_base is not None
    return stream.time_base


def _seek_times(entries: list[_Entry], pts: Ints, container: InputContainer) -> Ints:
    """MP4 and AVI index the time of decoding, the others that of showing."""
    if not container.format.name.startswith(("mov,", "avi")):
        return pts
    return np.array([t if entry.dts is None else entry.dts for entry, t in zip(entries, pts.tolist(), strict=True)])


def _filled(times: list[int | None]) -> Ints:
    """Unknown times follow the one before."""
    known, filled = -1, []
    for t in times:
        known = known + 1 if t is None else t
        filled.append(known)
    return np.array(filled, np.int64)


def _usual_step(pts_shown: Ints, stream: VideoStream) -> int:
    """How long a frame is shown where its packet does not say."""
    if len(pts_shown) > 1:
        return int(np.median(np.diff(pts_shown)))
    return round(1 / ((stream.average_rate or 25) * _ticks(stream)))
