"""What is known of one file: every clip of it needs the same, and a pass over its packets takes a second an hour."""

from __future__ import annotations

from mlb_batch.video import asf
from mlb_batch.video.clock import Deadline
from mlb_batch.video.container import opened
from mlb_batch.video.packets import Trouble
from mlb_batch.video.parts import Parts
from mlb_batch.video.ranges import listed
from mlb_batch.video.runs import Video
from mlb_batch.video.straight import scan_frames
from mlb_batch.video.timeline import Timeline, scan
from mlb_batch.video.values import Limits


class Known:
    def __init__(self) -> None:
        self.needs_whole = False  # it has no index, or one that proved wrong
        self._index: Timeline | None = None
        self._packets: Timeline | None = None
        self._frames: tuple[Timeline, Trouble] | None = None

    def index(self, parts: Parts, limits: Limits, deadline: Deadline) -> Timeline | None:
        """None where only the whole file tells."""
        if self.needs_whole:
            return None
        if self._index is None:
            self._index = listed(parts, limits, deadline)
            self.needs_whole = self._index is None
        return self._index

    def packets(self, video: Video) -> Timeline:
        if self._packets is None:
            cut_from_s = asf.cut_from_s(video.source)
            with opened(video.source, video.limits) as (container, stream):
                self._packets = scan(container, stream, video.deadline, cut_from_s)
        return self._packets

    def frames(self, video: Video) -> tuple[Timeline, Trouble]:
        """Where the packets don't tell."""
        if self._frames is None:
            self._frames = scan_frames(video, self.packets(video))
        return self._frames
