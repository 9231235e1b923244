"""Pictures as SVG, written by hand: a chart of curves with their intervals, and heat maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 190, 56, 52
_NAMES_X = WIDTH - _RIGHT + 14
_SIGN = 8  # pixels of a name, at most but for a few capitals
_DODGE = 4.0  # pixels between methods at one cost, so that their intervals don't lie over each other
# Told apart by colour and, where colour is not seen, by their marks and the names at their ends.
_COLOURS = (
    "#1b6ca8",
    "#c2410c",
    "#15803d",
    "#7e22ce",
    "#a16207",
    "#be185d",
    "#0f766e",
    "#4b5563",
    "#7c2d12",
    "#1e3a8a",
)
_MARKS = ("circle", "square", "diamond")
_SCALE = "white: an even share; red: up to 4 times as much; blue: down to a quarter of it"
_FONT = 'font-family="system-ui, sans-serif"'


@dataclass(frozen=True)
class Point:
    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True)
class Curve:
    name: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Heat:
    """Rows of numbers under a title; `labels` name the rows."""

    title: str
    values: Sequence[Sequence[float]]
    labels: Sequence[str] = ()


def chart(title: str, x_name: str, y_name: str, curves: Sequence[Curve], level: Point | None = None) -> str:
    """Curves over a logarithmic axis; `level`: a line across, with its interval as a band (the unpruned model)."""
    points = [point for curve in curves for point in curve.points] + ([level] if level else [])
    if not points:
        return _document(WIDTH, 80, [_text(16, 40, f"{title}: nothing to show")])
    axes = _Axes.around(points)
    parts = [_text(_LEFT, 26, title, size=16), *axes.drawn(x_name, y_name)]
    if level:
        parts += _level(axes, level)
    ends = _spread([axes.y(curve.points[-1].y) for curve in curves])
    for number, (curve, end) in enumerate(zip(curves, ends, strict=True)):
        aside = _DODGE * (number - (len(curves) - 1) / 2)
        parts += _curve(axes, curve, _COLOURS[number % len(_COLOURS)], _MARKS[number % len(_MARKS)], end, aside)
    names_end = _NAMES_X + _SIGN * max((len(curve.name) for curve in curves), default=0)
    return _document(max(WIDTH, names_end), HEIGHT, parts)


@dataclass(frozen=True)
class _Axes:
    left: float  # logarithms of x
    right: float
    low: float
    high: float

    @classmethod
    def around(cls, points: Sequence[Point]) -> _Axes:
        xs = [math.log2(point.x) for point in points]
        low, high = min(point.low for point in points), max(point.high for point in points)
        room = max(0.01, 0.06 * (high - low))
        return cls(min(xs) - 0.15, max(max(xs), 0.0) + 0.15, low - room, high + room)

    def x(self, value: float) -> float:
        return _LEFT + (math.log2(value) - self.left) / (self.right - self.left) * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return _TOP + (self.high - value) / (self.high - self.low) * (HEIGHT - _TOP - _BOTTOM)

    def drawn(self, x_name: str, y_name: str) -> list[str]:
        bottom, end = HEIGHT - _BOTTOM, WIDTH - _RIGHT
        parts = [f'<path d="M{_LEFT} {_TOP}V{bottom}H{end}" fill="none" stroke="#888"/>']
        for value in _ticks(self.low, self.high):
            y = self.y(value)
            parts.append(f'<line x1="{_LEFT}" x2="{end}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e5e5e5"/>')
            parts.append(_text(_LEFT - 8, y + 4, _number(value), anchor="end", size=11))
        for power in range(math.ceil(self.left), math.floor(self.right) + 1):
            x = self.x(2.0**power)
            parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 5}" stroke="#888"/>')
            parts.append(_text(x, bottom + 18, f"{100 * 2.0**power:.3g} %", anchor="middle", size=11))
        parts.append(_text((_LEFT + end) / 2, HEIGHT - 12, x_name, anchor="middle"))
        return [*parts, _text(_LEFT, _TOP - 6, y_name, size=11)]


def _level(axes: _Axes, level: Point) -> list[str]:
    top, bottom, y, end = axes.y(level.high), axes.y(level.low), axes.y(level.y), WIDTH - _RIGHT
    return [
        f'<rect x="{_LEFT}" width="{end - _LEFT}" y="{top:.1f}" height="{bottom - top:.1f}" '
        'fill="#888" opacity="0.15"/>',
        f'<line x1="{_LEFT}" x2="{end}" y1="{y:.1f}" y2="{y:.1f}" stroke="#555" stroke-dasharray="5 4"/>',
        _text(end - 6, y - 5, "unpruned", anchor="end", size=11),
    ]


def _curve(axes: _Axes, curve: Curve, colour: str, mark: str, end: float, aside: float) -> list[str]:
    at = [(axes.x(point.x) + aside, axes.y(point.y), axes.y(point.low), axes.y(point.high)) for point in curve.points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in at)
    parts = [f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.8"/>']
    for x, y, low, high in at:
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}" stroke="{colour}" opacity="0.5"/>'
        )
        parts.append(_mark(mark, x, y, colour))
    x, y = at[-1][:2]
    parts.append(
        f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{_NAMES_X - 4}" y2="{end - 4:.1f}" stroke="{colour}" opacity="0.3"/>'
    )
    return [*parts, _text(_NAMES_X, end, curve.name, colour=colour)]


def _mark(kind: str, x: float, y: float, colour: str) -> str:
    if kind == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.6" fill="{colour}"/>'
    turn = f' transform="rotate(45 {x:.1f} {y:.1f})"' if kind == "diamond" else ""
    return f'<rect x="{x - 3.3:.1f}" y="{y - 3.3:.1f}" width="6.6" height="6.6" fill="{colour}"{turn}/>'


def _spread(ends: Sequence[float], apart: float = 15.0) -> list[float]:
    """Names beside the ends of their curves, moved down where two would lie over each other, and up from the edge."""
    out = [0.0] * len(ends)
    order = sorted(range(len(ends)), key=lambda one: ends[one])
    last = -math.inf
    for place in order:
        last = out[place] = max(ends[place] + 4, last + apart)
    least = HEIGHT - apart
    for place in reversed(order):
        out[place] = min(out[place], least)
        least = out[place] - apart
    return out


def _ticks(low: float, high: float) -> list[float]:
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * one for one in (1, 2, 5, 10) if power * one >= rough)
    return [round(place * step, 10) for place in range(math.ceil(low / step), math.floor(high / step) + 1)]


def heat_maps(title: str, maps: Sequence[Heat], neutral: float) -> str:
    """Maps one below the other, on one scale: `neutral` is white, more is red, less is blue."""
    parts = [_text(16, 26, title, size=16), _text(16, 44, _SCALE, size=11)]
    y, width = 58.0, 560.0
    columns = max((len(values) for heat in maps for values in heat.values), default=1)
    cell = max(6, min(22, 1200 // columns))
    for heat in maps:
        parts.append(_text(16, y + 12, heat.title))
        y += 20
        left = 16 + (60 if heat.labels else 0)
        for row, values in enumerate(heat.values):
            if heat.labels:
                parts.append(_text(left - 8, y + cell * 0.7, heat.labels[row], anchor="end", size=11))
            parts += [_cell(left + cell * column, y, cell, value, neutral) for column, value in enumerate(values)]
            y += cell
            width = max(width, left + cell * len(values) + 16)
        y += 16
    return _document(int(width), int(y), parts)


def _cell(x: float, y: float, side: int, value: float, neutral: float) -> str:
    return (
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{side}" height="{side}" fill="{_shade(value, neutral)}" '
        f'stroke="#fff"><title>{_number(value)}</title></rect>'
    )


def _shade(value: float, neutral: float) -> str:
    """By how many times more or less than neutral: four times is full colour."""
    times = math.log2(max(value, 1e-9) / neutral) / 2
    strength = min(1.0, abs(times))
    full = (178, 24, 43) if times > 0 else (33, 102, 172)
    return "#" + "".join(f"{round(255 + (one - 255) * strength):02x}" for one in full)


def _number(value: float) -> str:
    return f"{value:.3g}"


def _text(x: float, y: float, text: str, anchor: str = "start", size: int = 13, colour: str = "#222") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{colour}" {_FONT}>'
        f"{escape(text)}</text>"
    )


def _document(width: int, height: int, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'
    )
