"""The run-level breaker: refusals wait until storage gives something else, and end the job where nothing comes."""

from __future__ import annotations

import pytest

from mlb_batch.chain.breaker import IN_A_ROW, MOST_HELD, Breaker
from mlb_batch.errors import JobError, RowError
from mlb_batch.spec_parts import LimitsSpec
from mlb_batch.work import Counts, InStorage, Outcome, in_storage


def outcome(kind: InStorage, name: str = "v", **counts: int) -> Outcome:
    row = {"uri": name, "message": f"no {name}"}
    rows = {"annotations": [row]} if kind == "found" else {"errors": [row]}
    return Outcome(**rows, counts=Counts(**counts), in_storage=kind)  # type: ignore[arg-type]


def breaker_of(there: bool = True, **limits: float) -> Breaker:
    """`there`: what storage says when it is asked once more."""
    return Breaker(LimitsSpec(**limits), lambda uri: there and uri == "v")  # type: ignore[arg-type]


def test_a_refusal_is_recorded_once_another_video_was_there() -> None:
    breaker = breaker_of()
    refused, other, found = outcome("failed"), outcome("", "late"), outcome("found")
    assert breaker.passed([refused]) == []
    assert breaker.passed([other]) == [other], "what storage has no part in waits for nothing"
    assert breaker.passed([found]) == [refused, found]
    assert breaker.passed([refused]) == [] and breaker.rest() == [refused] and breaker.rest() == []


def test_a_video_that_was_had_before_the_others_were_refused_tells_nothing() -> None:
    """Keys that end: what was read until then is still being answered while refusals overtake it."""
    breaker, refused, found = breaker_of(there=False), outcome("failed"), outcome("found")
    assert breaker.passed([refused]) == []
    assert breaker.passed([found]) == [found]
    with pytest.raises(JobError, match="no other could"):
        breaker.rest()


def test_many_in_a_row_end_the_job_in_one_line() -> None:
    breaker = breaker_of()
    for _ in range(3):  # never in a row
        assert len(breaker.passed([outcome("failed", f"v{n}") for n in range(IN_A_ROW - 1)])) == 0
        assert len(breaker.passed([outcome("found")])) == IN_A_ROW
    breaker.passed([outcome("failed", f"v{n}") for n in range(IN_A_ROW - 1)])
    with pytest.raises(JobError, match=r"no last.*resume") as ended:
        breaker.passed([outcome("failed", "last")])
    assert "\n" not in str(ended.value)


@pytest.mark.parametrize("refused", [1, 2, IN_A_ROW - 1])
def test_a_small_job_that_got_nothing_ends_too(refused: int) -> None:
    breaker = breaker_of()
    assert breaker.passed([outcome("failed", f"v{n}") for n in range(refused)]) == []
    with pytest.raises(JobError, match=rf"no v{refused - 1};.*max_error_share"):
        breaker.rest()


def test_the_last_ones_are_to_blame_only_where_another_can_still_be_had() -> None:
    for there in (True, False):
        breaker = breaker_of(there)
        refused = [outcome("failed", f"v{n}") for n in range(3)]
        breaker.passed([outcome("found"), *refused])
        if there:
            assert breaker.rest() == refused
        else:
            with pytest.raises(JobError, match="3 videos"):
                breaker.rest()


def test_one_video_of_many_rows_is_one_video() -> None:
    breaker, refused = breaker_of(), outcome("failed", "missing")
    breaker.passed([outcome("found")])
    assert breaker.passed([refused] * (MOST_HELD - 1)) == []
    assert breaker.passed([refused]) == [refused] * MOST_HELD, "no more of them can wait, and another is still there"
    breaker = breaker_of(there=False)
    breaker.passed([outcome("found")])
    with pytest.raises(JobError, match="a video could not be had"):
        breaker.passed([refused] * MOST_HELD)


def test_what_earlier_runs_had_counts_where_it_can_still_be_had() -> None:
    refused, stood = outcome("failed", "new"), Outcome(counts=Counts(videos=1000, skipped_done=1000), stands="v")
    breaker = breaker_of()
    assert breaker.passed([stood, refused]) == [stood] and breaker.rest() == [refused]
    breaker = breaker_of(there=False)
    assert breaker.passed([stood, refused]) == [stood]
    with pytest.raises(JobError, match="a video could not be had"):
        breaker.rest()


def test_who_says_how_many_errors_may_be_is_believed() -> None:
    breaker = breaker_of(max_error_share=1.0)
    many = [outcome("failed", f"v{n}") for n in range(10 * IN_A_ROW)]
    assert breaker.passed(many) == many and breaker.rest() == []


@pytest.mark.parametrize(
    ("error", "expected"),
    [("storage", "failed"), ("forbidden", "failed"), ("timeout", ""), ("not_found", "found"), ("corrupt", "found")],
)
def test_what_tells_that_storage_answers(error: str, expected: str) -> None:
    assert in_storage(RowError(error, "x")) == expected
    assert in_storage(object()) == "found"
