"""The bottom layer: packets out of a container and frames out of packets, past what is broken, against the clock."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from mlb_batch.errors import RowError
from mlb_batch.video.clock import Deadline

DEMUX_ERRORS = 100  # in one pass, before the rest of the file is given up
# Whose packets say truly that nothing leans on them: HEVC's may be leaned on from a higher layer, others say nothing.
CAN_SPARE = {"h264", "mpeg2video"}


def real_packets(container: InputContainer, streams: Iterable[Stream], deadline: Deadline) -> Iterator[Packet[Any]]:
    """The streams' packets with data in them; what cannot be parsed is stepped over."""
    for _ in range(DEMUX_ERRORS):
        try:
            for packet in container.demux(*streams):
                deadline.check()
                if packet.size:
                    yield packet
            return
        except av.FFmpegError:  # also "no memory": what it says of a packet with an absurd size
            continue
        except IndexError:  # PyAV's word, behind the last packet, about a stream that came up on the way
            return


@dataclass
class Trouble:
    """What went wrong on the way."""

    errors: int = 0
    unsupported: bool = False
    refused_size: bool = False
    spared: bool = False  # some frames were left out on purpose


class Decoder:
    """Packets in, frames out; a packet that cannot be read is counted and left behind."""

    def __init__(self, stream: VideoStream, trouble: Trouble) -> None:
        self._stream = stream
        self._trouble = trouble
        self._can_spare = stream.codec_context.name in CAN_SPARE

    def feed(self, packet: Packet[Any], expected_to_fail: bool = False, spare: bool = False) -> list[VideoFrame]:
        """`spare`: its frame need not be decoded where no other leans on it."""
        if self._can_spare:
            self._trouble.spared |= spare
            self._stream.codec_context.skip_frame = "NONREF" if spare else "DEFAULT"
        errors = self._trouble.errors
        frames = self._decode(packet)
        if expected_to_fail:
            self._trouble.errors = errors
        return frames

    def drain(self) -> list[VideoFrame]:
        """The frames still held back for reordering; after it a new run can begin."""
        frames = self._decode(None)
        self._stream.codec_context.flush_buffers()
        return frames

    def _decode(self, packet: Packet[Any] | None) -> list[VideoFrame]:
        try:
            return self._stream.codec_context.decode(packet)
        except MemoryError as error:
            raise RowError("out_of_memory", "reading a frame asked for more memory than is allowed") from error
        except (av.DecoderNotFoundError, av.PatchWelcomeError, av.NotImplementedError):
            self._trouble.unsupported = True
        except av.ArgumentError:  # FFmpeg's answer to a picture over max_pixels, which then has no size either
            self._trouble.refused_size |= self._stream.codec_context.width == 0
        except av.FFmpegError:
            pass
        self._trouble.errors += 1
        return []
