"""Opening a container safely, and saying what is wrong with one that does not open.

Only demuxers of single, self-contained video files may open anything: no playlist, no concat list, no SDP, no image
sequence, so that a file cannot name another file or a host. Oversized pictures are refused before their memory is
asked for. FFmpeg's logging stays off: with it on, PyAV can deadlock while holding the interpreter's lock.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from mlb_batch.errors import RowError
from mlb_batch.video.values import Limits

Source = BinaryIO | io.RawIOBase | Path

DEMUXERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,flv,gif,ogg,asf,nut,mxf,rm,dv,ivf"
BY_INDEX = {"fflags": "noparse+nofillin"}
STILL = Disposition.attached_pic | Disposition.timed_thumbnails  # cover art is not a video

# What the first bytes of a video file may be, for telling a broken video from something that never was one.
ISO_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp", b"moof")
ASF = b"0&\xb2u\x8ef\xcf\x11"
MAGICS = (b"\x1aE\xdf\xa3", b"FLV", b"OggS", b"GIF8", b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3", ASF)


@contextmanager
def opened(source: Source, limits: Limits, by_index: bool = False) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and the video stream to read. Raises RowError.

    `by_index`: packets are as the container's index lists them; nobody looks into them.
    """
    if size_of(source) == 0:
        raise RowError("empty", "the file has 0 bytes")
    with _open(source, limits, BY_INDEX if by_index else {}) as container:
        yield container, _video_stream(container, limits)


def size_of(source: Source) -> int:
    return source.stat().st_size if isinstance(source, Path) else source.seek(0, io.SEEK_END)


def picture_limit(limits: Limits) -> dict[str, str]:
    """The codec option that makes FFmpeg refuse an oversized picture before its memory is asked for."""
    return {"max_pixels": str(limits.max_pixels)}


def _open(source: Source, limits: Limits, more: dict[str, str]) -> InputContainer:
    if isinstance(source, Path):
        file: str | BinaryIO = f"file:{source.absolute()}"  # the prefix keeps a name like "concat:a|b" a name
    else:
        source.seek(0)
        file = cast(BinaryIO, source)
    options = {"format_whitelist": DEMUXERS, "protocol_whitelist": "file", **picture_limit(limits), **more}
    try:
        return av.open(file, mode="r", options=options, metadata_errors="replace")
    except av.FFmpegError as error:  # also "no memory": headers that claim absurd counts
        raise _unopenable(source, error) from error


def _video_stream(container: InputContainer, limits: Limits) -> VideoStream:
    streams = [stream for stream in container.streams.video if not stream.disposition & STILL]
    if not streams:
        kinds = ", ".join(sorted({stream.type for stream in container.streams}))
        if not kinds:
            raise RowError("corrupt", "the container opens, but holds nothing")
        raise RowError("no_video_stream", f"the container holds no video ({kinds})")
    stream = next((s for s in streams if s.disposition & Disposition.default), streams[0])
    context = stream.codec_context
    if context is None:
        raise RowError("unsupported_codec", "FFmpeg has no reader for the video's codec")
    if context.width * context.height > limits.max_pixels:
        raise RowError("too_large", f"{context.width}x{context.height} pixels, the limit is {limits.max_pixels:,}")
    context.options = picture_limit(limits)
    # One thread a video: actors are the parallelism, times stay deterministic, and FFmpeg's frame threads are what
    # PyAV's logging deadlocks with.
    context.thread_count = 1
    context.thread_type = "NONE"
    return stream


def _unopenable(source: Source, error: av.FFmpegError) -> RowError:
    """What to call a file that no demuxer of ours opens."""
    head = read_at(source, 0, 512)
    if head[4:8] in ISO_BOXES:
        lacking = _cut_away(source)
        if lacking is None:
            return RowError("corrupt", f"an MP4 file whose headers cannot be read ({error.strerror})")
        return RowError("truncated", f"an MP4 file without {lacking}: the end of the file is missing")
    if head.startswith(MAGICS) or (head.startswith(b"RIFF") and head[8:12] == b"AVI ") or head[0:189:188] == b"GG":
        return RowError("corrupt", f"a video file whose headers cannot be read ({error.strerror})")
    return RowError("not_video", "not a video file that FFmpeg can read")


def read_at(source: Source, offset: int, length: int) -> bytes:
    if isinstance(source, Path):
        with source.open("rb") as file:
            return os.pread(file.fileno(), length, offset)
    source.seek(offset)
    return source.read(length)


def _cut_away(source: Source) -> str | None:
    """What an MP4 file whose end is missing cannot be opened without; None where its end is there."""
    end = size_of(source)
    whole = {kind: last <= end for kind, _, last in top_boxes(source)}
    if not whole.get(b"moov"):
        return "its index (moov)"
    return None if all(whole.values()) else "the whole of its last box"


def top_boxes(source: Source) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start, end) of an MP4 file's boxes of the top level; at most a thousand, whatever the file says."""
    offset, end = 0, size_of(source)
    for _ in range(1000):
        head = read_at(source, offset, 16)
        if len(head) < 8:
            return
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        elif length == 0:
            length = end - offset
        yield kind, offset, offset + length
        offset += length
        if length < 8 or offset >= end:  # what it says may be more than a file can hold
            return
