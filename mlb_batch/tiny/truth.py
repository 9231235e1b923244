"""What is so in a clip of the procedural world."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Act:
    """One shape from `start` up to, not including, `end`. Exactly one of direction and place is set."""

    colour: str
    shape: str
    direction: str | None
    place: str | None
    start: int
    end: int

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Flash:
    """A brief shape in a corner, from `start` up to, not including, `end`."""

    colour: str
    shape: str
    place: str
    start: int
    end: int


@dataclass(frozen=True)
class Truth:
    frames: int
    acts: tuple[Act, ...]
    flashes: tuple[Flash, ...]  # in time order, never two at once
    flicker: tuple[float, float] | None  # where the distractor is, as shares of the frame
    cuts: tuple[int, ...]  # frames whose background differs from the one before
