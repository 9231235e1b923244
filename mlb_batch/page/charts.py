"""Bars and steps as SVG: shapes that stretch with the page; their words stand beside them, as HTML."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mlb_batch.page.runs import Step


def bar(parts: Sequence[tuple[str, float]], of: float, mark: float | None = None, thin: bool = False) -> str:
    """Parts (a CSS class and an amount) side by side on a line that is `of` long; `mark`: a limit across it."""
    shapes: list[str] = []
    start: float = 0  # whole for a bill, which is measured by a budget that no float may hold
    for name, amount in parts:
        if amount > 0 and of > 0:
            shapes.append(f'<rect class="{name}" x="{_share(start, of)}" width="{_share(amount, of)}" height="100%"/>')
            start += amount
    if mark is not None and 0 < mark <= of:
        at = _share(mark, of)
        shapes.append(f'<line class="mark" x1="{at}" x2="{at}" y1="0" y2="100%"/>')
    return f'<svg class="bar{" thin" if thin else ""}" aria-hidden="true">{"".join(shapes)}</svg>'


def steps(values: Sequence[Step]) -> str:
    """An area under steps, in a box of 1000 by 100."""
    end_s, top = values[-1].until_s, ceiling(max(step.per_minute for step in values))
    path, x = ["M0 100"], 0.0
    for step in values:
        y = 100 - 100 * step.per_minute / top
        path.append(f"L{x:.1f} {y:.2f}")
        x = 1000 * step.until_s / end_s
        path.append(f"L{x:.1f} {y:.2f}")
    lines = "".join(f'<line class="rule" x1="0" x2="1000" y1="{y}" y2="{y}"/>' for y in (0, 50, 100))
    return (
        '<svg class="steps" viewBox="0 0 1000 100" preserveAspectRatio="none" aria-hidden="true">'
        f'{lines}<path class="area" d="{" ".join(path)} L{x:.1f} 100 Z"/>'
        f'<path class="edge" d="M0 {path[1].split()[1]} {" ".join(path[2:])}"/></svg>'
    )


def ceiling(value: float) -> float:
    """The next round number: 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value)) if value > 0 else 1.0
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value)


def _share(amount: float, of: float) -> str:
    return f"{100 * amount / of:.3f}%"
