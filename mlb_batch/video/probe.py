"""What a video's headers say, without reading a frame. For plans and estimates; reading finds out what is true.

Headers are other people's data too: on files of others use `Prober`.
"""

from __future__ import annotations

import av

from mlb_batch.video.container import Source, opened, size_of
from mlb_batch.video.values import Header, Limits

INDEXED = ("mov,", "avi", "matroska,", "flv")  # formats that carry an index; whether this file does is seen below


def probe(source: Source, limits: Limits | None = None) -> Header:
    """Raises RowError. Blocks as long as `source` does."""
    with opened(source, limits or Limits()) as (container, stream):
        duration_s = None
        if container.duration is not None:
            duration_s = container.duration / av.time_base
        elif stream.duration is not None and stream.time_base is not None:
            duration_s = float(stream.duration * stream.time_base)
        context = stream.codec_context
        return Header(
            format=container.format.name,
            codec=context.name,
            width=context.width,
            height=context.height,
            duration_s=duration_s,
            average_fps=float(stream.average_rate) if stream.average_rate else None,
            frames=stream.frames or None,
            has_index=container.format.name.startswith(INDEXED) and len(stream.index_entries) > 1,
            num_bytes=size_of(source),
        )
