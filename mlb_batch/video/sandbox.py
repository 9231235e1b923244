"""Reader: reads videos in one persistent child process, and lives on whatever they do to it.

A hanging codec can hold the interpreter's lock for ever, a crashing one takes its process along, a bomb eats memory: so
the videos are read in a child that can be killed from outside, and the supervisor only waits, with a deadline. Videos
are fetched here, so that the child needs neither credentials nor network; its answers are data (JSON and pixels in
shared memory), checked before use.
"""

from __future__ import annotations

import fcntl
import json
import math
import mmap
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mlb_batch.errors import JobError, RowError
from mlb_batch.video.fetch import fetched
from mlb_batch.video.values import Frames, FrameSize, Limits, Sampling

GRACE_S = 1.0  # for the child to notice its deadline itself, which spares a fresh one
ANSWER_BYTES = 1 << 16
START_S = 60.0
ENTRY = ("-m", "mlb_batch.video.child")


class Reader:
    """Not for two threads at once. Raises JobError where the child cannot even start: that is no video's fault."""

    def __init__(self, sampling: Sampling, size: FrameSize, limits: Limits, entry: Sequence[str] = ENTRY) -> None:
        """`entry`: the interpreter's arguments that start the child; its socket's number is added."""
        self._limits = limits
        self._job = {"sampling": asdict(sampling), "size": asdict(size), "limits": asdict(limits)}
        self._entry = tuple(entry)
        self._child: _Child | None = None

    def read(
        self, uri: str, start_s: float | None = None, end_s: float | None = None, version: str | None = None
    ) -> Frames:
        """The sampled frames of [start_s, end_s). With `version`, the file must still be that one. Raises RowError."""
        end = time.monotonic() + self._limits.video_s
        with fetched(uri, self._limits, version) as file:
            left_s = end - time.monotonic()
            limits = {**self._job["limits"], "video_s": left_s}
            return self._ask({**self._job, "limits": limits, "start_s": start_s, "end_s": end_s}, file.fd, left_s)

    def close(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def child_pid(self) -> int | None:
        return None if self._child is None else self._child.process.pid

    def _ask(self, job: dict[str, Any], fd: int, left_s: float) -> Frames:
        if left_s <= 0:
            raise RowError("timeout", f"reading took longer than {self._limits.video_s:g} s")
        if self._child is None or self._child.process.poll() is not None:
            self.close()
            self._child = _Child(self._entry)
        try:
            answer, fds = self._child.ask(job, fd, left_s + GRACE_S)
        except TimeoutError:
            self.close()
            raise RowError("timeout", f"reading took longer than {self._limits.video_s:g} s") from None
        except OSError:
            raise self._death() from None
        except BaseException:  # an interrupt: an answer is still to come, which nobody will wait for
            self.close()
            raise
        if "error_class" in answer:
            if answer["error_class"] == "out_of_memory":
                self.close()  # a fresh heap for the next video
            raise RowError(answer["error_class"], answer["message"])
        return _frames(answer, fds[0])

    def _death(self) -> RowError:
        """Why the child is gone."""
        assert self._child is not None
        code = self._child.process.wait()
        self.close()
        if code == -signal.SIGKILL:
            return RowError(
                "out_of_memory", "the reading process was killed from outside, as a rule for want of memory"
            )
        if code == -signal.SIGALRM:
            return RowError("timeout", f"reading took longer than {self._limits.video_s:g} s")
        cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return RowError("decoder_crash", f"the reading process died ({cause})")


class _Child:
    def __init__(self, entry: Sequence[str]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, *entry, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=_environment(),
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is the supervisor's to answer
            )
        self._socket = ours
        ours.settimeout(START_S)
        try:
            ready = ours.recv(ANSWER_BYTES)
        except OSError:
            ready = b""
        if not ready:
            self.kill()
            raise JobError(f"the reading process does not start ({sys.executable} {' '.join(entry)})")

    def ask(self, job: dict[str, Any], fd: int, timeout_s: float) -> tuple[dict[str, Any], list[int]]:
        """Raises TimeoutError, and another OSError when the child is gone."""
        self._socket.settimeout(timeout_s)
        socket.send_fds(self._socket, [json.dumps(job).encode()], [fd])
        message, fds, _, _ = socket.recv_fds(self._socket, ANSWER_BYTES, 1)
        if not message:
            raise ConnectionResetError("the child closed its end")
        return json.loads(message), fds

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._socket.close()


def _environment() -> dict[str, str]:
    """What Python needs to find this package, and nothing that this process knows."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "LANG") if name in os.environ}
    single = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    path = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
    return {"PYTHONPATH": path, **single, **kept}


def _frames(answer: dict[str, Any], fd: int) -> Frames:
    """The child's pixels, without copying them; the memory goes when the array does."""
    try:
        shape = tuple(int(n) for n in answer["shape"])
        size, frames = math.prod(shape), shape[0]
        # From here on the child cannot cut the memory short under our hands.
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        assert os.fstat(fd).st_size >= size + 8 * frames, answer
        memory = mmap.mmap(fd, size + 8 * frames)
    finally:
        os.close(fd)
    return Frames(
        pixels_FHWC=np.frombuffer(memory, np.uint8, size).reshape(shape),
        times_s=tuple(np.frombuffer(memory[size:], np.float64, frames).tolist()),
        wanted=int(answer["wanted"]),
        duration_s=float(answer["duration_s"]),
        partial=bool(answer["partial"]),
        bytes_read=int(answer["bytes_read"]),
    )
