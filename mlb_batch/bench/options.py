"""What a user may say about a benchmark. What is left out follows the shape (shapes.py); who takes what: suite.py."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path


@dataclass(frozen=True)
class Options:
    shape: str = "tiny"
    rounds: int = 3
    device: str = "auto"
    threads: int | None = None  # of torch on a CPU; None: as it comes
    frames: int | None = None
    new_tokens: int | None = None
    batch: int | None = None  # clips at once; None: each contender's best, or what a job would take
    method: str | None = None
    ratio: float | None = None  # of the unpruned prefill
    model: str = "embedded:tiny"  # pipeline: where no shape is named
    job: Path | None = None  # with its own model, frames, prompts and method
    sets: tuple[str, ...] = ()
    videos: str | None = None  # a folder, or a prefix in storage
    clips: int = 24  # at most so many
    readers: int = 1
    rows: tuple[int, ...] = (1_000,)
    actors: tuple[int, ...] = (1, 2)
    speed: float = 1.0  # the simulated device is so many times faster than the calibrated one

    @property
    def given(self) -> tuple[str, ...]:
        """Those that differ from what they are when nobody says them."""
        return tuple(one.name for one in fields(self) if getattr(self, one.name) != one.default)


def flag(name: str) -> str:
    """As it is written on the command line."""
    return "--set" if name == "sets" else f"--{name.replace('_', '-')}"
