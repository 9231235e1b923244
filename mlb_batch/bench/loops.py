"""Other ways to read the same frames: a plain PyAV loop, and decord and torchcodec where they are installed.

Each is given one thread, picks its frames by the rule of `uniform`, and ends with the pixels that a checkpoint's own
processor makes. `decord_bilinear` leaves the resizing to decord, which is faster and gives other pixels.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from PIL import Image

from mlb_batch.video import FrameSize, Limits
from mlb_batch.video.resize import resize, upright
from mlb_batch.video.values import Pixels

SIZE = FrameSize((384, 384))
LIMITS = Limits(video_s=600.0)


@dataclass(frozen=True)
class Loop:
    read: Callable[[str, int, FrameSize], Pixels]  # path, frames wanted, their size
    errors: tuple[type[Exception], ...]  # what it says of a video that it can't read


def loops() -> tuple[dict[str, Loop], dict[str, str]]:
    """Those that are here, and why the others are not."""
    found, absent = {"pyav": Loop(plain, (av.FFmpegError, IndexError))}, {}
    for name, made in (("decord", _decord), ("decord_bilinear", _decord_bilinear), ("torchcodec", _torchcodec)):
        try:
            found[name] = made()
        except (ImportError, OSError, RuntimeError) as error:  # not installed, or without the libraries that it wants
            absent[name] = str(error).strip().partition("\n")[0]
    return found, absent


def uniform(frames: int, count: int) -> list[int]:
    return [int(at) for at in np.linspace(0, frames - 1, min(count, frames))]


def plain(path: str, count: int, size: FrameSize) -> Pixels:
    """Every frame from the first to the last that is wanted, in order."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        wanted = set(uniform(stream.frames or _counted(path), count))
        last, out = max(wanted), []
        for index, frame in enumerate(container.decode(stream)):
            if index in wanted:
                image = Image.fromarray(frame.to_ndarray(format="rgb24"))
                out.append(resize(upright(image, frame), size))
            if index == last:
                break
    return np.stack(out)


def _counted(path: str) -> int:
    with av.open(path) as container:
        return sum(packet.size > 0 for packet in container.demux(container.streams.video[0]))


def _decord() -> Loop:
    decord: Any = importlib.import_module("decord")

    def read(path: str, count: int, size: FrameSize) -> Pixels:
        return _resized(_batch(decord.VideoReader(path, num_threads=1), count), size)

    return Loop(read, (decord.DECORDError, RuntimeError))


def _decord_bilinear() -> Loop:
    decord: Any = importlib.import_module("decord")

    def read(path: str, count: int, size: FrameSize) -> Pixels:
        assert not isinstance(size.resize, int)
        height, width = size.resize
        return _batch(decord.VideoReader(path, width=width, height=height, num_threads=1), count)

    return Loop(read, (decord.DECORDError, RuntimeError))


def _batch(video: Any, count: int) -> Pixels:
    pixels_FHWC: Pixels = video.get_batch(uniform(len(video), count)).asnumpy()
    return pixels_FHWC


def _torchcodec() -> Loop:
    decoders: Any = importlib.import_module("torchcodec.decoders")

    def read(path: str, count: int, size: FrameSize) -> Pixels:
        video = decoders.VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1)
        return _resized(video.get_frames_at(uniform(len(video), count)).data.numpy(), size)

    return Loop(read, (RuntimeError, ValueError, IndexError))


def _resized(pixels_FHWC: Pixels, size: FrameSize) -> Pixels:
    return np.stack([resize(Image.fromarray(pixels_HWC), size) for pixels_HWC in pixels_FHWC])
