"""How long the pictures of a video last: what its clips are cut by.

The packets tell, which reading passes over anyway; of a file in storage its index is enough, where it has a whole one.
Headers guess, say nothing, speak of the first of two recordings, or add up times of decoding.
"""

from __future__ import annotations

from pathlib import Path

from mlb_batch.video.frames import Known, deadline_of, known_frames, known_index, known_packets
from mlb_batch.video.parts import Parts
from mlb_batch.video.runs import Video
from mlb_batch.video.values import Limits


def lasting_s(path: Path, limits: Limits, parts: Parts | None, known: Known) -> float:
    """Raises RowError. Blocks as `read_frames` does; what it finds out is `known` from then on."""
    deadline = deadline_of(limits, parts)
    if parts is not None:
        index = known_index(parts, limits, deadline, known)
        if index is not None:
            return index.duration_s
        parts.bring_all()
    video = Video(path, limits, deadline)
    timeline = known_packets(video, known)
    return timeline.duration_s if timeline.trusted else known_frames(video, known)[0].duration_s
