"""Ends a run whose storage gives it nothing, before its videos are written off as failed.

Whether one object is refused or everything is, a single answer does not tell. So what failed in storage waits until
another video could be had, also by then: it is asked for once more, and so is one at the end of the input (or where a
few videos have so many rows that no more can wait). If it still can be had, the others are refused for themselves.
Where many videos fail one after the other and none can be had, the job ends, and nothing of them is recorded: the same
command tries them again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from mlb_batch.errors import JobError
from mlb_batch.spec_parts import LimitsSpec
from mlb_batch.stages import attempt
from mlb_batch.video import version_of
from mlb_batch.work import Outcome, in_storage

IN_A_ROW = 20  # videos, each of however many rows
MOST_HELD = 2_000  # rows


def still_there(uri: str) -> bool:
    """Asked of storage now. Raises JobError where it answers nobody any more."""
    return in_storage(attempt(partial(version_of, uri), "storage")) != "failed"


class Breaker:
    def __init__(self, limits: LimitsSpec, there: Callable[[str], bool] = still_there) -> None:
        """`there`: whether storage still has something to say of a uri."""
        self._most = IN_A_ROW if limits.max_error_share is None else None  # who says what to expect is believed
        self._there = there
        self._held: list[Outcome] = []
        self._known = ""  # the uri of a video that could be had: the last one of this run, or one of an earlier run

    def passed(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """What can be recorded by now. Raises JobError."""
        out: list[Outcome] = []
        for one in outcomes:
            self._known = self._known or one.stands
            if one.in_storage == "failed" and self._most is not None:
                self._held.append(one)
            elif one.in_storage == "found":
                self._known = next((row["uri"] for row in (*one.annotations, *one.errors)), self._known)
                # It may have been read before the others were refused: only what is asked now tells.
                out += [*(self._released() if self._held and self._has_it_still() else []), one]
            else:
                out.append(one)
        if self._most is not None and len(self._refused()) >= self._most:
            raise self._end()
        return out + self.rest() if len(self._held) >= MOST_HELD else out

    def rest(self) -> list[Outcome]:
        """What can be recorded when nothing more comes, or can wait. Raises JobError."""
        if self._held and not self._has_it_still():
            raise self._end()
        return self._released()

    def _has_it_still(self) -> bool:
        return bool(self._known) and self._there(self._known)

    def _refused(self) -> set[str]:
        return {row["uri"] for one in self._held for row in one.errors}

    def _released(self) -> list[Outcome]:
        held, self._held = self._held, []
        return held

    def _end(self) -> JobError:
        said = next((row["message"] for row in reversed(self._held[-1].errors)), "")
        count = len(self._refused())
        videos = f"{count} videos one after the other" if count > 1 else "a video"
        return JobError(
            f"{videos} could not be had from storage, and no other could: {said}; nothing of that is recorded. Check "
            "the credentials and the bucket's policy, then run the same command to resume; to record such videos as "
            "errors, set limits.max_error_share"
        )
