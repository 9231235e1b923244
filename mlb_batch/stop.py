"""Why a run stops before its input ends: SIGTERM (pre-emption, `ray job stop`), Ctrl-C, or its own deadline; and what
the command exits with then, or where an error ended it.
"""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

from mlb_batch.errors import UserError

SIGNALS = (signal.SIGTERM, signal.SIGINT)
STOPPED, INTERRUPTED = (128 + number for number in SIGNALS)  # the exit codes, whenever these signals come


def exit_code_of(error: BaseException | None) -> int:
    """Of a command that this ended: 2 where the user can mend it, 1 where running it again may help."""
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return 2 if isinstance(error, UserError) else 1


class Stop:
    """`reason` is "" for as long as the run may go on. The run looks at it between two batches of arrivals."""

    def __init__(self, deadline_h: float | None) -> None:
        self._until_s = None if deadline_h is None else time.monotonic() + deadline_h * 3600
        self._signal = ""
        self._before: dict[int, Any] = {}

    @property
    def reason(self) -> str:
        if not self._signal and self._until_s is not None and time.monotonic() > self._until_s:
            return "deadline"
        return self._signal

    def __enter__(self) -> Stop:
        # A library call from another thread has no signals to handle; its program has its own way to stop.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signal != "SIGINT":
            self._signal = signal.Signals(number).name
        elif number == signal.SIGINT:  # a second Ctrl-C means now; a SIGTERM behind the first asks for nothing more
            raise KeyboardInterrupt
