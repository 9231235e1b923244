"""The clips' frames, read again by the job's own rules: small, side by side in one picture that lies in the page.

The same way as in the run: the uri must be allowed by the job, the file must be the version that was annotated, and a
child process that can be killed does the reading. What can't be read is a placeholder with the reason.
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from mlb_batch.errors import JobError, RowError
from mlb_batch.page.cards import Clip
from mlb_batch.source.uris import UriPolicy
from mlb_batch.spec import JobSpec
from mlb_batch.threads import Threads
from mlb_batch.video import Frames, FrameSize, Limits, Reader, Sampling, Several

MOST_PICTURES = 240
MOST_FRAMES = 8  # shown of a clip, evenly chosen
SIDE = 144
QUALITY = 70
PICTURES_S = 180.0  # for all of them; what is not read by then is left out
READERS = 4


@dataclass(frozen=True)
class Picture:
    """The frames of one clip, or why there are none."""

    frames: tuple[int, ...] = ()  # which of the sampled frames are shown
    times_s: tuple[float, ...] = ()
    data: str = ""  # base64 of a WebP, the frames side by side
    problem: str = ""


def pictures(spec: JobSpec, plan: Mapping[str, Any], clips: Sequence[Clip]) -> Iterator[Picture]:
    """One for each clip, in order."""
    end_s = time.monotonic() + PICTURES_S
    policy, size = UriPolicy.of(spec.input), small(plan["frame_resize"], plan["frame_crop"])
    sampling = Sampling(int(plan["frames"]), spec.frames.strategy, spec.frames.fps)
    reader = partial(Reader, sampling, size, Limits(video_s=spec.limits.video_s))
    given_up: list[Picture] = []
    with Several(reader, READERS) as readers, Threads(READERS) as threads:

        def one(clip: Clip) -> Picture:
            if given_up:
                return given_up[0]
            if time.monotonic() > end_s:
                return Picture(problem=f"not read: the page takes {PICTURES_S:.0f} s for its pictures")
            try:
                with readers.one() as mine:
                    return picture(mine, policy, clip)
            except JobError as error:  # no video of this job can be read from here; the rest of the page can be shown
                given_up.append(Picture(problem=str(error)))
                return given_up[0]

        yield from threads.map(one, clips)


def picture(reader: Reader, policy: UriPolicy, clip: Clip) -> Picture:
    row = clip.first
    try:
        uri = policy.resolve(row["uri"])
        frames = reader.read(uri, row["clip_start_s"], row["clip_end_s"], row["video_version"] or None)
    except RowError as error:
        return Picture(problem=f"{error.error_class}: {error.message}")
    then_s = row["frame_times_s"]
    if len(frames.times_s) != len(then_s) or not np.allclose(frames.times_s, then_s):
        return Picture(problem="the frames that are read now are not those that were annotated")
    return _drawn(frames)


def _drawn(frames: Frames) -> Picture:
    total = len(frames.times_s)
    shown = np.linspace(0, total - 1, min(total, MOST_FRAMES)).astype(int)
    strip_HWC = np.concatenate(list(frames.pixels_FHWC[shown]), axis=1)
    data = io.BytesIO()
    Image.fromarray(strip_HWC).save(data, "WEBP", quality=QUALITY)
    times_s = tuple(frames.times_s[i] for i in shown)
    return Picture(tuple(map(int, shown)), times_s, base64.b64encode(data.getvalue()).decode())


def small(resize: Any, crop: Any) -> FrameSize:
    """What the model sees of a frame, only smaller: so the grid of its tokens fits."""
    seen = crop or resize
    scale = SIDE / (max(seen) if isinstance(seen, list | tuple) else seen)

    def scaled(edge: int) -> int:
        return max(1, round(edge * scale))

    return FrameSize(
        resize=scaled(resize) if isinstance(resize, int) else (scaled(resize[0]), scaled(resize[1])),
        crop=None if crop is None else (scaled(crop[0]), scaled(crop[1])),
    )
