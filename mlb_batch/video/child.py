"""The child process in which other people's videos are read. It knows its socket and nothing else.

A job comes as one JSON message with the video's file descriptor beside it; the answer is one JSON message, with the
pixels and their times in shared memory (shared.py). Between the two, where the file is not all here, the child may ask
for parts of it, which the supervisor brings. The process has no credentials (its environment is made for it), no
network where the kernel lets it give that up, and a bound on its memory; it dies by itself when its supervisor does, or
some seconds after a deadline that the supervisor did not enforce.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import resource
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from mlb_batch.errors import RowError
from mlb_batch.video.frames import Wanted, read_frames
from mlb_batch.video.known import Known
from mlb_batch.video.length import lasting_s
from mlb_batch.video.parts import Parts, Range
from mlb_batch.video.probe import probe
from mlb_batch.video.shared import Lender
from mlb_batch.video.values import Frames, FrameSize, Limits, Sampling

JOB_BYTES = 1 << 16
READY = b"ready"  # the first message: this process can import what it needs
ORPHAN_S = 10  # beyond the deadline
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000


def main() -> None:
    drop_rights()
    limited, file, known, shared = False, "", Known(), Lender()
    with socket.socket(fileno=int(sys.argv[1])) as supervisor:
        supervisor.send(READY)
        while True:
            message, fds, _, _ = socket.recv_fds(supervisor, JOB_BYTES, 1)
            if not message:
                return
            job = json.loads(message)
            if not limited:
                limit_memory(job["limits"]["memory_mb"])
                limited = True
            signal.alarm(math.ceil(job["limits"]["video_s"]) + ORPHAN_S)
            shared.begin(job["free"])
            path = Path(f"/proc/self/fd/{fds[0]}")
            source = Parts(path, job["size_in_storage"], partial(ask, supervisor)) if "size_in_storage" in job else path
            if job["file"] != file:
                file, known = job["file"], Known()
            try:
                answer, fresh = work(job, source, shared, known)
            finally:
                os.close(fds[0])
                if isinstance(source, Parts):
                    source.close()
            socket.send_fds(supervisor, [json.dumps(answer).encode()], fresh)
            shared.end()
            signal.alarm(0)


def drop_rights() -> None:
    """No core dumps, and a network namespace of its own with nothing in it, where an unprivileged process may."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).unshare(CLONE_NEWUSER | CLONE_NEWNET)


def limit_memory(growth_mb: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (growth_mb << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def ask(supervisor: socket.socket, ranges: Sequence[Range]) -> None:
    """Returns when they are here. The supervisor keeps the time meanwhile, and kills whom it has nothing to tell."""
    seconds = signal.alarm(0)
    supervisor.send(json.dumps({"bring": ranges}).encode())
    if not supervisor.recv(JOB_BYTES):
        sys.exit()
    signal.alarm(seconds)


def work(job: dict[str, Any], source: Path | Parts, shared: Lender, known: Known) -> tuple[dict[str, Any], list[int]]:
    """The answer, and the descriptor of the memory that its pixels lie in, where the supervisor hasn't got it."""
    try:
        limits = Limits(**job["limits"])
        if job["wanted"] == "header":
            return {"header": asdict(probe(source, limits))}, []
        if job["wanted"] == "length":
            return {"lasting_s": lasting_s(source, limits, known)}, []
        sampling, size = Sampling(**job["sampling"]), frame_size(job["size"])
        clip = Wanted(sampling, size, limits, job["start_s"], job["end_s"], shared.allocate)
        frames = read_frames(source, clip, known)
    except RowError as error:
        return {"error_class": error.error_class, "message": error.message}, []
    except MemoryError:
        return {"error_class": "out_of_memory", "message": "reading needed more memory than is allowed"}, []
    number, fresh = shared.hand_over(frames)
    return {"memory": number, **described(frames)}, fresh


def frame_size(fields: dict[str, Any]) -> FrameSize:
    """JSON has no tuples."""
    resize, crop = fields["resize"], fields["crop"]
    return FrameSize(
        resize=resize if isinstance(resize, int) else (resize[0], resize[1]),
        crop=None if crop is None else (crop[0], crop[1]),
        resample=fields["resample"],
    )


def described(frames: Frames) -> dict[str, Any]:
    return {
        "shape": frames.pixels_FHWC.shape,
        "wanted": frames.wanted,
        "duration_s": frames.duration_s,
        "partial": frames.partial,
        "bytes_read": frames.bytes_read,
    }


if __name__ == "__main__":
    main()
