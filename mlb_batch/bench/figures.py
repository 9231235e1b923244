"""What a race says: three ratios, what the counted operations predict, and how near the device's ceiling it came."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from mlb_batch.bench.race import Race
from mlb_batch.bench.rounds import Spread, three_ratios

NAMES = ("transformers", "vanilla", "pruned")
_DIGITS = 5


def about(race: Race) -> dict[str, Any]:
    """Seconds, batches and the three ratios."""
    return {
        "seconds_per_clip": race.spreads,
        "batch": race.batch,
        "seconds_per_clip_at_batch": race.tried,
        **({"peak_bytes": race.peak_bytes} if race.peak_bytes else {}),
        "ratios": three_ratios(race.seconds),
    }


def predicted(race: Race, flops: Mapping[str, int]) -> dict[str, Any]:
    """The speed-up that `flops` of one clip predict for pruning, and the share of it that was reached."""
    speedup = flops["vanilla"] / flops["pruned"]
    reached = three_ratios(race.seconds)["pruned_over_vanilla"]
    share = Spread(*(value / speedup for value in (reached.median, reached.low, reached.high)))
    return {"predicted_speedup": speedup, "reached": share}


def of_ceiling(race: Race, amounts: Mapping[str, int], ceiling_per_s: float) -> dict[str, Spread]:
    """Amounts of one clip (operations or bytes) over its seconds, as shares of what the device can."""
    return {
        name: Spread.of([amounts[name] / seconds / ceiling_per_s for seconds in race.seconds[name]])
        for name in NAMES
        if name in race.seconds
    }


def plain(value: Any) -> Any:
    """As JSON knows it; fractions to a few digits."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value


def lines(value: Any, name: str = "") -> Iterator[str]:
    """For people: every figure on a line of its own, under its way down."""
    if dataclasses.is_dataclass(value) and not isinstance(value, (type, Spread)):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield from lines(one, f"{name} / {key}" if name else str(key))
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from lines(one, f"{name} {number}")
    else:
        yield f"{name.replace('_', ' ')}: {f'{value:.4g}' if isinstance(value, float) else value}"
