"""Ends a run whose storage gives it nothing, before its videos are written off as failed.

Whether one object is refused or everything is, a single answer does not tell. So what failed in storage waits until
another video could be had; where many fail one after the other and none can be had, the job ends, and nothing of them
is recorded: the same command tries them again.
"""

from __future__ import annotations

from collections.abc import Sequence

from mlb_batch.errors import JobError
from mlb_batch.spec import LimitsSpec
from mlb_batch.work import Outcome

IN_A_ROW = 20


class Breaker:
    def __init__(self, limits: LimitsSpec) -> None:
        self._most = IN_A_ROW if limits.max_error_share is None else None  # who says what to expect is believed
        self._held: list[Outcome] = []

    def passed(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """What can be recorded by now. Raises JobError."""
        out: list[Outcome] = []
        for one in outcomes:
            if one.in_storage == "failed" and self._most is not None:
                self._held.append(one)
            elif one.in_storage == "found":
                out += [*self.rest(), one]
            else:
                out.append(one)
        if self._most is not None and len(self._held) >= self._most:
            raise self._end()
        return out

    def rest(self) -> list[Outcome]:
        held, self._held = self._held, []
        return held

    def _end(self) -> JobError:
        said = next((row["message"] for row in reversed(self._held[-1].errors)), "")
        return JobError(
            f"{len(self._held)} videos one after the other could not be had from storage, and no other could: {said}; "
            "nothing of them is recorded. Check the credentials and the bucket's policy, then run the same command to "
            "resume; to record them as errors, set limits.max_error_share"
        )
