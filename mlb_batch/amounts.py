"""Numbers as people write and read them: counts, shares, operations, bytes and times."""

from __future__ import annotations

import math
from fractions import Fraction

_NANO = 10**9
_PREFIXES = ((10**18, "E"), (10**15, "P"), (10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k"))


def written(number: float) -> Fraction:
    """The number that the user wrote: 0.1 is a tenth, not the float next to it."""
    return Fraction(repr(number))


def count(number: int) -> str:
    return f"{number:,}"


def many(number: int, noun: str) -> str:
    """1 video; 2,000 videos."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def percent(share: float) -> str:
    """Three digits, or all before the point; and never 100 % for what is less."""
    if share >= 9.995:  # three digits would be 1e+03
        return f"{100 * share:,.0f} %"
    text = f"{100 * share:.3g}"
    return f"{math.floor(share * 10_000) / 100:.2f} %" if text == "100" and share < 1 else f"{text} %"


def amount(number: int, unit: str) -> str:
    """12.3 PFLOPs; time in hours, minutes or seconds."""
    if unit == "nanoseconds":
        return _time(number)
    for size, prefix in _PREFIXES:
        if number >= size:
            return f"{number / size:,.4g} {prefix}{unit}" if len(unit) < 6 else f"{number / size:,.4g} {prefix} {unit}"
    return f"{number} {unit}"


def hours(number: float) -> str:
    """Of a fraction of an hour, its minutes or seconds."""
    return _time(round(number * 3600 * _NANO))


def gpu_hours(number: float) -> str:
    return f"{number:,.3g} GPU-hours" if number < 100 else f"{number:,.0f} GPU-hours"


def at_price(cost: float | None) -> str:
    """Behind GPU-hours; nothing where the job names no price."""
    return "" if cost is None else f", {cost:,.2f} at limits.price_per_gpu_hour"


def _time(nanoseconds: int) -> str:
    for size, name in ((3600 * _NANO, "hours"), (60 * _NANO, "minutes")):
        if nanoseconds >= size:
            return f"{nanoseconds / size:,.2f} {name}"
    return f"{nanoseconds / _NANO:.2f} seconds"
