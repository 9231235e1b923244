"""Which frames of a clip are wanted: pure arithmetic on the frames' times.

A clip is the frames whose times lie in [start, end), to a microsecond; where none does, the one frame that is on screen
at its start (before the first picture, as where sound begins earlier, the first).

uniform    The rule of LLaVA-OneVision's and LLaVA-NeXT's reference code: of the clip's n frames, in order of time,
           those at linspace(0, n - 1, count), rounded down. It counts frames, also where their rate varies, as the
           reference does. With n <= count: every frame, once.
fps        The frame on screen at start, start + 1/fps, start + 2/fps, ... Over the cap: uniform.
keyframes  Every keyframe of the clip; over the cap, evenly chosen by the same rule.

No frame is taken twice, so a clip may have fewer frames than were asked for without being a partial read.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mlb_batch.video.values import Sampling

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

GRACE_S = 1e-6  # a clip from 3 * 0.1 begins with the frame that is shown at 0.3


def clip_frames(times_s: Floats, end_of_video_s: float, start_s: float | None, end_s: float | None) -> Ints:
    """Indices of the clip's frames. Times are sorted. Empty where the clip lies outside the video."""
    start = 0 if start_s is None else int(np.searchsorted(times_s, start_s - GRACE_S, side="left"))
    end = len(times_s) if end_s is None else int(np.searchsorted(times_s, end_s - GRACE_S, side="left"))
    if start >= end and (start_s or 0.0) < end_of_video_s:
        start, end = max(0, start - 1), max(1, start)
    return np.arange(start, end, dtype=np.int64)


def pick(
    times_s: Floats,
    is_key: npt.NDArray[np.bool_],
    frames: Ints,
    start_s: float,
    end_s: float,
    sampling: Sampling,
) -> Ints:
    """Those of the clip's `frames` (indices into `times_s`, sorted) that the sampling wants, sorted, each once."""
    if sampling.strategy == "keyframes":
        frames = frames[is_key[frames]]
    elif sampling.strategy == "fps":
        assert sampling.fps is not None and sampling.fps > 0, sampling
        on_screen = _at_rate(times_s[frames], start_s, end_s, sampling.fps)
        if len(on_screen) <= sampling.count:
            return frames[on_screen]
    else:
        assert sampling.strategy == "uniform", sampling
    return frames[uniform(len(frames), sampling.count)]


def uniform(total: int, count: int) -> Ints:
    if total <= count:
        return np.arange(total, dtype=np.int64)
    return np.linspace(0, total - 1, count, dtype=np.int64)


def _at_rate(times_s: Floats, start_s: float, end_s: float, fps: float) -> Ints:
    """The frames that are on screen at one of the ticks start, start + 1/fps, ... before the end."""
    # the same grace: the tick at 3 * (1/3) belongs to the frame that is shown at 1.0
    ticks_before = np.ceil((np.append(times_s, end_s) - start_s) * fps - 1e-6)
    # the first tick always has a frame: the clip's first, even where it comes a little later
    ticks_before[0], ticks_before[1:] = 0, np.maximum(1, ticks_before[1:])
    return np.flatnonzero(ticks_before[:-1] < ticks_before[1:])
