"""How long the pictures of a video last: what its clips are cut by.

By the headers where they count the frames; elsewhere they guess, say nothing, or speak of the first of two recordings,
so there the packets tell, which reading passes over anyway.
"""

from __future__ import annotations

from pathlib import Path

from av.container import InputContainer
from av.video.stream import VideoStream

from mlb_batch.video.container import opened
from mlb_batch.video.frames import Known, deadline_of, known_frames, known_packets
from mlb_batch.video.parts import Parts
from mlb_batch.video.probe import pictures_s
from mlb_batch.video.runs import Video
from mlb_batch.video.values import Limits


def lasting_s(path: Path, limits: Limits, parts: Parts | None, known: Known) -> float:
    """Raises RowError. Blocks as `read_frames` does; what it finds out is `known` from then on."""
    with opened(parts or path, limits) as (container, stream):
        counted_s = pictures_s(container, stream) if _counts(container, stream) else None
    if counted_s:
        return counted_s
    if parts is not None:
        parts.bring_all()
    video = Video(path, limits, deadline_of(limits, parts))
    timeline = known_packets(video, known)
    return timeline.duration_s if timeline.trusted else known_frames(video, known)[0].duration_s


def _counts(container: InputContainer, stream: VideoStream) -> bool:
    """An MP4 whose index is whole, which fragments' is not."""
    return container.format.name.startswith("mov,") and 0 < len(stream.index_entries) <= stream.frames
