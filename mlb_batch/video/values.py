"""The values that go into reading a video and come out of it. Pixels: F frames, H rows, W columns, C = RGB, uint8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from mlb_batch.storage_errors import PATIENCE_S

Pixels: TypeAlias = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class FrameSize:
    """How a frame gets to the model's input size; comes from the checkpoint's processor config."""

    resize: tuple[int, int] | int  # (h, w): squash to exactly this; int: shortest edge to this, keeping the aspect
    crop: tuple[int, int] | None = None  # centre crop (h, w) after resizing, padded with zeros where smaller
    resample: str = "bicubic"  # bicubic | bilinear | lanczos | nearest; antialiased, as Pillow does it


@dataclass(frozen=True)
class Sampling:
    """Which frames of a clip are wanted; the rules are in sampling.py."""

    count: int  # frames wanted (fps, keyframes: at most this many)
    strategy: str = "uniform"  # uniform | fps | keyframes
    fps: float | None = None


@dataclass(frozen=True)
class Limits:
    """What one video may cost before it becomes an error row."""

    video_s: float = 60.0  # wall clock, fetching included, but for a storage that doesn't answer:
    patience_s: float = PATIENCE_S  # that is waited for so long
    max_pixels: int = 33_177_600  # of one raw frame (8K)
    memory_mb: int = 2048  # what the child's address space may grow by


@dataclass(frozen=True)
class Header:
    """What the container's headers say. Claims, not facts: no frame was read."""

    format: str
    codec: str
    width: int
    height: int
    duration_s: float | None
    average_fps: float | None
    frames: int | None
    num_bytes: int  # of the file


@dataclass(frozen=True)
class Frames:
    """The frames of one clip, in order of time."""

    pixels_FHWC: Pixels  # RGB, upright, at the model's input size
    times_s: tuple[float, ...]  # when each is shown, from the video's start (the container's start time subtracted)
    wanted: int  # distinct frames that the sampling asked for: never more than the clip has
    duration_s: float  # of the clip
    partial: bool  # some of the wanted frames could not be read, or not without damage
    bytes_read: int  # from storage; of a local file, its size
