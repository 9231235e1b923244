"""The run-level breaker: refusals wait until storage gives something else, and end the job where nothing comes."""

from __future__ import annotations

import pytest

from mlb_batch.chain.breaker import IN_A_ROW, Breaker
from mlb_batch.errors import JobError, RowError
from mlb_batch.spec import LimitsSpec
from mlb_batch.work import InStorage, Outcome, in_storage


def outcome(kind: InStorage, name: str = "v") -> Outcome:
    return Outcome(errors=[{"video_id": name, "message": f"no {name}"}] if kind != "found" else [], in_storage=kind)


def test_a_refusal_is_recorded_once_another_video_was_there() -> None:
    breaker = Breaker(LimitsSpec())
    refused, other, found = outcome("failed"), outcome("", "late"), outcome("found")
    assert breaker.passed([refused]) == []
    assert breaker.passed([other]) == [other], "what storage has no part in waits for nothing"
    assert breaker.passed([found]) == [refused, found]
    assert breaker.passed([refused]) == [] and breaker.rest() == [refused] and breaker.rest() == []


def test_many_in_a_row_end_the_job_in_one_line() -> None:
    breaker = Breaker(LimitsSpec())
    for _ in range(3):  # never in a row
        assert len(breaker.passed([outcome("failed")] * (IN_A_ROW - 1))) == 0
        assert len(breaker.passed([outcome("found")])) == IN_A_ROW
    breaker.passed([outcome("failed", f"v{n}") for n in range(IN_A_ROW - 1)])
    with pytest.raises(JobError, match=r"no last.*resume") as ended:
        breaker.passed([outcome("failed", "last")])
    assert "\n" not in str(ended.value)


def test_who_says_how_many_errors_may_be_is_believed() -> None:
    breaker = Breaker(LimitsSpec(max_error_share=1.0))
    many = [outcome("failed")] * 10 * IN_A_ROW
    assert breaker.passed(many) == many and breaker.rest() == []


@pytest.mark.parametrize(
    ("error", "expected"),
    [("storage", "failed"), ("forbidden", "failed"), ("timeout", ""), ("not_found", "found"), ("corrupt", "found")],
)
def test_what_tells_that_storage_answers(error: str, expected: str) -> None:
    assert in_storage(RowError(error, "x")) == expected
    assert in_storage(object()) == "found"
