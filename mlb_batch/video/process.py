"""The child process from its supervisor's side: started, spoken with under a deadline, killed."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlb_batch.errors import JobError, RowError
from mlb_batch.video.clock import Clock
from mlb_batch.video.shared import Borrower

_PACKAGE = Path(__file__).absolute().parents[1]
MESSAGE_BYTES = 1 << 16
START_S = 60.0
DYING_S = 5.0


class Child:
    """Raises JobError where it cannot even start: that is no video's fault."""

    def __init__(self, entry: Sequence[str]) -> None:
        try:
            self.process, self.socket = _started(entry)
        except OSError as error:
            raise JobError(f"this machine gives no process to read videos in: {error.strerror or error}") from error
        self.lent = Borrower()
        self.socket.settimeout(START_S)
        try:
            ready = self.socket.recv(MESSAGE_BYTES)
        except OSError:
            ready = b""
        if not ready:
            self.kill()
            raise JobError(f"the reading process does not start ({sys.executable} {' '.join(entry)})")
        self._address_space_mb = self._mapped_mb()

    def send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        socket.send_fds(self.socket, [json.dumps(message).encode()], list(fds))

    def receive(self, timeout_s: float) -> tuple[dict[str, Any], list[int]]:
        """Raises TimeoutError, and another OSError when the child is gone."""
        self.socket.settimeout(max(timeout_s, 0.001))
        message, fds, _, _ = socket.recv_fds(self.socket, MESSAGE_BYTES, 1)
        if not message:
            raise ConnectionResetError("the child closed its end")
        return json.loads(message), fds

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def grown_mb(self) -> int:
        """Address space that it took since it started and did not give back."""
        return self._mapped_mb() - self._address_space_mb

    def kill(self) -> None:
        self.process.kill()
        with suppress(subprocess.TimeoutExpired):  # a disk that hangs keeps who reads from it; it ends with that
            self.process.wait(DYING_S)
        self.socket.close()
        self.lent = Borrower()  # who looks at the old one's pixels keeps them

    def cause_of_death(self, clock: Clock) -> RowError:
        try:
            code = self.process.wait(DYING_S)
        except subprocess.TimeoutExpired:
            return RowError("decoder_crash", "the reading process closed its end and went on")
        if code == -signal.SIGKILL:
            return RowError(
                "out_of_memory", "the reading process was killed from outside, as a rule for want of memory"
            )
        if code == -signal.SIGALRM:
            return clock.over
        cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return RowError("decoder_crash", f"the reading process died ({cause})")

    def _mapped_mb(self) -> int:
        try:
            pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[0])
        except OSError:
            return 0  # it is dying; the next video finds out
        return pages * resource.getpagesize() >> 20


def _started(entry: Sequence[str]) -> tuple[subprocess.Popen[bytes], socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        try:
            process = subprocess.Popen(
                [sys.executable, *entry, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=_environment(),
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is the supervisor's to answer
            )
        except OSError:
            ours.close()
            raise
    return process, ours


def _environment() -> dict[str, str]:
    """What Python needs to find this package, and nothing that this process knows.

    Not the working folder, which Ray's workers have in their path and Python looks at first: a random.py that lies
    there is not the one of Python.
    """
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "LANG") if name in os.environ}
    single = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    # Pictures are asked for and given back all the time: taken from the kernel anew, each costs a fault a page.
    kept_memory = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(128 << 20)}
    entries = dict.fromkeys(Path(entry).absolute() for entry in sys.path)
    path = os.pathsep.join(str(entry) for entry in entries if entry != Path.cwd() or entry == _PACKAGE.parent)
    return {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", **single, **kept_memory, **kept}
