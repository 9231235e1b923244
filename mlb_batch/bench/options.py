"""What a user may say about a benchmark. What is left out follows the shape."""

from __future__ import annotations

from dataclasses import dataclass
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
    model: str = "embedded:tiny"  # calibrate, scale; pipeline, of the shape that the embedded model has
    job: Path | None = None  # calibrate: the job's own model, frames, prompts and method
    sets: tuple[str, ...] = ()
    videos: str | None = None  # read, pipeline: a folder, or a prefix in storage
    clips: int = 24  # pipeline, read: at most so many
    readers: int = 1  # pipeline
    rows: tuple[int, ...] = (1_000,)  # scale
    actors: tuple[int, ...] = (1, 2)
    speed: float = 1.0  # scale: the simulated device is so many times faster than the calibrated one
