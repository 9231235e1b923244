"""How long an ASF or WMV file was before it was cut off: its header says so, and FFmpeg then does not pass it on."""

from __future__ import annotations

import struct

from mlb_batch.video.container import ASF, Source, read_at, size_of

FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
# How many bytes the file has, how many 100 ns it takes to play, and how many ms of these pass before anything is shown.
FIELDS = struct.Struct("<40x Q 16x Q 8x Q")
HEADER_BYTES = 64 << 10  # it is among the first things in there


def cut_from_s(source: Source) -> float | None:
    """None where all of the file is here, or it is of another kind."""
    head = read_at(source, 0, HEADER_BYTES)
    at = head.find(FILE_PROPERTIES)
    if not head.startswith(ASF) or not 0 < at <= len(head) - FIELDS.size:
        return None
    whole_bytes, to_play, before = FIELDS.unpack_from(head, at)
    return to_play / 1e7 - before / 1e3 if whole_bytes > size_of(source) else None
