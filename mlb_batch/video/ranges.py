"""Which bytes of a file the wanted frames need, found without fetching the others.

An MP4 or QuickTime file that keeps its whole index in one place (moov) says where every frame lies. With the index
here and zeros for pictures, FFmpeg gives the very timeline that the whole file would give, if it is told not to look
into the pictures. What is then read has to be what was listed; anything else, and the whole file is fetched.
"""

from __future__ import annotations

import numpy as np

from mlb_batch.errors import RowError
from mlb_batch.video.clock import Deadline
from mlb_batch.video.container import opened, top_boxes
from mlb_batch.video.parts import Parts, Range, merged
from mlb_batch.video.runs import plan_runs
from mlb_batch.video.sampling import Ints
from mlb_batch.video.timeline import Timeline, scan
from mlb_batch.video.values import Limits

PLAIN_BOXES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"uuid", b"udta", b"meta", b"pnot", b"PICT"}
GAP_BYTES = 128 << 10  # what lies between two ranges is fetched along up to here: it takes less time than a request
WHOLE_SHARE = 0.8  # of the file wanted: then all of it, in few large pieces


def listed(parts: Parts, limits: Limits, deadline: Deadline) -> Timeline | None:
    """The timeline by the index alone; None where the file has no such index, or has something to hide."""
    with opened(parts, limits) as (container, _):  # brings what opening needs
        if not container.format.name.startswith("mov,"):
            return None
    boxes = list(top_boxes(parts))
    kinds = [kind for kind, _, _ in boxes]
    if not PLAIN_BOXES.issuperset(kinds) or kinds.count(b"moov") != 1 or boxes[-1][2] != parts.size:
        return None
    try:
        with opened(parts.path, limits, by_index=True) as (container, stream):
            timeline = scan(container, stream, deadline)
            starts_there = stream.start_time == timeline.pts[timeline.shown[0]]  # else the pictures would tell more
    except RowError as error:
        if error.error_class == "timeout":
            raise
        return None
    plain = timeline.trusted and not timeline.missing.any() and not timeline.sealed.any()
    return timeline if plain and starts_there and (timeline.place >= 0).all() else None


def needed(timeline: Timeline, wanted: Ints, size: int) -> list[Range]:
    """`wanted`: positions among the frames by time."""
    runs = plan_runs(timeline, timeline.shown[wanted])
    packets = np.concatenate([np.arange(run.first, run.last + 1) for run in runs])
    starts, ends = timeline.place[packets], timeline.place[packets] + timeline.length[packets]
    ranges = merged(list(zip(starts.tolist(), np.minimum(ends, size).tolist(), strict=True)), GAP_BYTES)
    return [(0, size)] if sum(end - start for start, end in ranges) > WHOLE_SHARE * size else ranges
