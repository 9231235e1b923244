"""Reader and Prober: they read videos in one persistent child process, and live on whatever videos do to it.

A hanging codec can hold the interpreter's lock for ever, a crashing one takes its process along, a bomb eats memory: so
videos are opened in a child that can be killed from outside, and the supervisor only waits, with a deadline. Videos are
fetched here, as far as the child asks for them, so that it needs neither credentials nor network; its answers are data
(JSON, and pixels in shared memory), checked before use.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any, Self

from mlb_batch.errors import RowError
from mlb_batch.video.clock import Clock
from mlb_batch.video.fetch import Fetched, Fetcher
from mlb_batch.video.process import Child
from mlb_batch.video.values import Frames, FrameSize, Header, Limits, Sampling

GRACE_S = 1.0  # for the child to notice its deadline itself, which spares a fresh one
GROWTH_SHARE = 0.5  # of the memory that a video may ask for: a child that has kept so much is replaced
ENTRY = ("-m", "mlb_batch.video.child")


class Prober:
    """What headers say. Not for two threads at once."""

    def __init__(self, limits: Limits, entry: Sequence[str] = ENTRY) -> None:
        """`entry`: the interpreter's arguments that start the child; its socket's number is added."""
        self._limits = limits
        self._entry = tuple(entry)
        self._fetcher = Fetcher(limits)
        self._child: Child | None = None
        self.bytes_fetched = 0  # from the beginning, of failed videos too

    def probe(self, uri: str) -> Header:
        """Raises RowError, and JobError where no video is to blame."""
        answer = self._answer(uri, {"wanted": "header"})
        return Header(**answer["header"])

    def close(self) -> None:
        self._fetcher.close()
        self._kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def child_pid(self) -> int | None:
        return None if self._child is None else self._child.process.pid

    def _answer(self, uri: str, job: dict[str, Any], version: str | None = None) -> dict[str, Any]:
        clock = Clock(self._limits.video_s)
        with self._fetcher.fetched(uri, clock, version) as file:
            try:
                answer = self._asked({**job, "file": file.key}, file, clock)
            finally:
                self.bytes_fetched += file.bytes_fetched()
        return {**answer, "bytes_read": file.bytes_fetched()}

    def _kill(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None

    def _ready_child(self, clock: Clock) -> Child:
        most_mb = GROWTH_SHARE * self._limits.memory_mb
        if self._child is None or not self._child.alive or self._child.grown_mb > most_mb:
            self._kill()
            clock.stand(time.monotonic())  # a process that is slow to start is no video's fault
            self._child = Child(self._entry)
            clock.go_on()
        return self._child

    def _asked(self, job: dict[str, Any], file: Fetched, clock: Clock) -> dict[str, Any]:
        clock.check()
        child = self._ready_child(clock)
        limits = {**asdict(self._limits), "video_s": clock.left_s}
        size = {} if file.bring is None else {"size_in_storage": file.size}
        with ExitStack() as undo:
            undo.callback(self._kill)  # whatever breaks it off: an answer is still to come, which nobody will wait for
            try:
                answer = self._conversation(child, {**job, **size, "limits": limits}, file, clock)
            except TimeoutError:
                raise clock.over from None
            except OSError:
                raise child.cause_of_death(clock) from None
            undo.pop_all()
        if "error_class" in answer:
            if answer["error_class"] == "timeout":
                raise clock.over  # which knows the limit; the child knew what was left of it
            if answer["error_class"] == "out_of_memory":
                self._kill()  # a fresh heap for the next video
            raise RowError(answer["error_class"], answer["message"])
        return answer

    def _conversation(self, child: Child, job: dict[str, Any], file: Fetched, clock: Clock) -> dict[str, Any]:
        child.send({**job, "free": child.lent.free()}, [file.fd])
        answer, fds = child.receive(clock.left_s + GRACE_S)
        while "bring" in answer and file.bring is not None:
            file.bring(_within(answer["bring"], file.size))
            child.send({})
            answer, fds = child.receive(clock.left_s + GRACE_S)
        if "bring" in answer:
            raise RowError("decoder_crash", "the reading process asked for a file that it has")
        if "memory" in answer:
            child.lent.receive(answer["memory"], fds)
        return answer


class Reader(Prober):
    """Sampled frames, and how long a video lasts."""

    def __init__(self, sampling: Sampling, size: FrameSize, limits: Limits, entry: Sequence[str] = ENTRY) -> None:
        super().__init__(limits, entry)
        self._job = {"wanted": "frames", "sampling": asdict(sampling), "size": asdict(size)}

    def lasting_s(self, uri: str) -> float:
        """Seconds, as far as there are pictures. Raises RowError."""
        return float(self._answer(uri, {"wanted": "length"})["lasting_s"])

    def read(
        self, uri: str, start_s: float | None = None, end_s: float | None = None, version: str | None = None
    ) -> Frames:
        """The frames of [start_s, end_s). With `version`, the file must still be that one. Raises RowError."""
        answer = self._answer(uri, {**self._job, "start_s": start_s, "end_s": end_s}, version)
        assert self._child is not None
        return self._child.lent.frames(answer)


def _within(ranges: Any, size: int) -> list[tuple[int, int]]:
    """The child's wish, if it is one that it may have."""
    wished = [(int(start), int(end)) for start, end in ranges]
    if any(not 0 <= start < end <= size for start, end in wished):
        raise RowError("decoder_crash", "the reading process asked for what is not in the file")
    return wished
