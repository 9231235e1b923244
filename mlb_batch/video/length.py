"""How long the pictures of a video last: what its clips are cut by.

An index tells, where the file has a whole one; else the packets, which reading passes over anyway. Headers guess, say
nothing, speak of the first of two recordings, or add up times of decoding.
"""

from __future__ import annotations

from pathlib import Path

from mlb_batch.video.clock import Deadline, deadline_of
from mlb_batch.video.container import opened
from mlb_batch.video.frames import Known, known_frames, known_index, known_packets
from mlb_batch.video.parts import Parts, nothing_of
from mlb_batch.video.ranges import listed
from mlb_batch.video.runs import Video
from mlb_batch.video.timeline import Timeline
from mlb_batch.video.values import Limits


def lasting_s(path: Path, limits: Limits, parts: Parts | None, known: Known) -> float:
    """Raises RowError. Blocks as `read_frames` does; what it finds out is `known` from then on."""
    deadline = deadline_of(limits, parts)
    index = known_index(parts, limits, deadline, known) if parts is not None else _index_of(path, limits, deadline)
    if index is not None:
        return index.duration_s
    if parts is not None:
        parts.bring_all()
    video = Video(path, limits, deadline)
    timeline = known_packets(video, known)
    return timeline.duration_s if timeline.trusted else known_frames(video, known)[0].duration_s


def _index_of(path: Path, limits: Limits, deadline: Deadline) -> Timeline | None:
    """Night after night a file of this machine, too, is asked how long it is, and nothing else."""
    with opened(path, limits) as (container, _):
        if not container.format.name.startswith("mov,"):
            return None
    with nothing_of(path) as parts:
        return listed(parts, limits, deadline)
