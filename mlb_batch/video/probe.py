"""What a video's headers say, without reading a frame. For plans and estimates; reading finds out what is true.

Headers are other people's data too: on files of others use `Prober`.
"""

from __future__ import annotations

import re

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from mlb_batch.video.container import Source, opened, size_of
from mlb_batch.video.values import Header, Limits


def probe(source: Source, limits: Limits | None = None) -> Header:
    """Raises RowError. Blocks as long as `source` does."""
    with opened(source, limits or Limits()) as (container, stream):
        context = stream.codec_context
        return Header(
            format=container.format.name,
            codec=context.name,
            width=context.width,
            height=context.height,
            duration_s=_pictures_s(container, stream),
            average_fps=float(stream.average_rate) if stream.average_rate else None,
            frames=stream.frames or None,
            num_bytes=size_of(source),
        )


def _pictures_s(container: InputContainer, stream: VideoStream) -> float | None:
    """As far as there are pictures: the container's own duration is that of its longest stream, often the sound."""
    longest_s = None if container.duration is None else container.duration / av.time_base
    end_s = _end_of_pictures_s(container, stream)
    if end_s is None:
        return longest_s
    pictures_s = end_s - (container.start_time or 0) / av.time_base
    if longest_s is None or 0 < pictures_s < longest_s:
        return pictures_s
    return longest_s


def _end_of_pictures_s(container: InputContainer, stream: VideoStream) -> float | None:
    if container.format.name.startswith("matroska,"):
        return _tagged_end_s(stream)
    if stream.duration is None or stream.time_base is None:
        return None
    return float(((stream.start_time or 0) + stream.duration) * stream.time_base)


def _tagged_end_s(stream: VideoStream) -> float | None:
    """Matroska's header has one duration for all streams; where each of them ends, most writers note in a tag."""
    tags = [text for key, text in stream.metadata.items() if re.fullmatch("DURATION(-[a-z]+)?", key)]
    clock = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", tags[0]) if tags else None
    return int(clock[1]) * 3600 + int(clock[2]) * 60 + float(clock[3]) if clock else None
