"""Numbers in the words of people."""

from __future__ import annotations

import pytest

from mlb_batch.amounts import gpu_hours, hours, many, percent


@pytest.mark.parametrize(
    ("share", "told"),
    [
        (0.0, "0 %"), (0.99999, "99.99 %"), (1.0, "100 %"), (5.512, "551 %"), (9.994, "999 %"),
        (9.996, "1,000 %"), (59.8, "5,980 %"), (12_345.678, "1,234,568 %"),
    ],
)  # fmt: skip
def test_a_share_is_never_told_with_an_exponent(share: float, told: str) -> None:
    assert percent(share) == told


@pytest.mark.parametrize(
    ("number", "told"), [(1234.5, "1,234.50 hours"), (0.5, "30.00 minutes"), (0.001, "3.60 seconds")]
)
def test_a_fraction_of_an_hour_is_told_in_what_it_has(number: float, told: str) -> None:
    assert hours(number) == told


@pytest.mark.parametrize(
    ("number", "told"), [(0.01234, "0.0123 GPU-hours"), (99.96, "100 GPU-hours"), (123_456.7, "123,457 GPU-hours")]
)
def test_hours_that_gpus_were_held_are_told_without_an_exponent(number: float, told: str) -> None:
    assert gpu_hours(number) == told


def test_one_of_a_kind_is_no_plural() -> None:
    assert [many(number, "header") for number in (0, 1, 6_000)] == ["0 headers", "1 header", "6,000 headers"]
