"""Long videos become clips: where each one starts and ends."""

from __future__ import annotations

from mlb_batch.errors import RowError
from mlb_batch.spec_parts import ClipsSpec

# A remainder shorter than this share of a clip joins the clip before it: containers overstate their duration by
# a frame or two, and a sliver without a single frame would be an error that nobody caused.
JOIN_SHARE = 0.1
MOST_CLIPS = 100_000  # of one video, more than a day of seconds; a header can claim any duration


def clip_spans(
    duration_s: float, clips: ClipsSpec | None, start_s: float | None = None, end_s: float | None = None
) -> list[tuple[float, float]]:
    """The (start, end) of each clip of a video, in seconds; one span where there are no clips.

    `start_s` and `end_s` bound the part to annotate; the result is empty where nothing of the video lies in it.
    RowError where there would be too many.
    """
    first_s = max(0.0, start_s or 0.0)
    last_s = duration_s if end_s is None else min(end_s, duration_s)
    if last_s <= first_s:
        return []
    if clips is None:
        return [(first_s, last_s)]
    step_s = clips.every_s - clips.overlap_s
    count = int((last_s - first_s) / step_s) + 1
    if count > MOST_CLIPS:
        raise RowError("too_long", f"{count:,} clips; of one video at most {MOST_CLIPS:,} are made")
    spans: list[tuple[float, float]] = []
    for n in range(count):
        begin_s = first_s + n * step_s
        finish_s = first_s + (n + 1) * step_s + clips.overlap_s  # to the bit where the next one begins, if they touch
        if last_s - finish_s < JOIN_SHARE * clips.every_s:
            return [*spans, (begin_s, last_s)]
        spans.append((begin_s, finish_s))
    return spans
