"""How long the pictures of a video last: what its clips are cut by.

An index tells, where the file has a whole one; else the packets, which reading passes over anyway. Headers guess, say
nothing, speak of the first of two recordings, or add up times of decoding.
"""

from __future__ import annotations

from pathlib import Path

from mlb_batch.video.clock import Deadline, deadline_of
from mlb_batch.video.container import opened
from mlb_batch.video.known import Known
from mlb_batch.video.parts import Parts, nothing_of
from mlb_batch.video.runs import Video
from mlb_batch.video.timeline import Timeline
from mlb_batch.video.values import Limits


def lasting_s(source: Path | Parts, limits: Limits, known: Known) -> float:
    """Raises RowError. Blocks as `read_frames` does; what it finds out is `known` from then on."""
    deadline = deadline_of(limits, source)
    index = _index_of(source, limits, deadline, known)
    if index is not None:
        return index.duration_s
    video = Video(source.bring_all() if isinstance(source, Parts) else source, limits, deadline)
    timeline = known.packets(video)
    return timeline.duration_s if timeline.trusted else known.frames(video)[0].duration_s


def _index_of(source: Path | Parts, limits: Limits, deadline: Deadline, known: Known) -> Timeline | None:
    """Night after night a file of this machine, too, is asked how long it is, and nothing else."""
    if isinstance(source, Parts):
        return known.index(source, limits, deadline)
    with opened(source, limits) as (container, _):
        if not container.format.name.startswith("mov,"):
            return None
    with nothing_of(source) as parts:
        return known.index(parts, limits, deadline)
