"""Selections as data: what was kept, from what, and by which scores, so that it can be replayed or plotted elsewhere.

One row for each cut of a sampled answer at which tokens leave; none of `frames` and `pool`, which choose by nothing. A
visual token is numbered frame x rows x cols + row x cols + col, in the clip's sampled frames.

    annotation_id   the answer
    layer           the first layer that sees only what was kept (0: before the language model)
    frames, rows, cols
                    the clip's grid of visual tokens
    candidates      tokens that were still there, ascending
    kept            those that went on, ascending (a merged token stands for its cell's first)
    score           attention that each candidate was paid, mean over heads and query rows; empty where none was read
    null_score      the same without content (every frame the clip's mean frame), of the layer of the first cut at all
                    cuts; empty where it was not measured
    segment         frame-segment of each encoded frame
    kept_by_frame, kept_by_place
                    how many were kept of each frame, and of each spatial position
    plain_by_frame, plain_by_place
                    the same, had the largest of these scores been kept, as many of each segment where a method looks at
                    one after the other: what the method made of them; empty without scores
"""

from __future__ import annotations

import numpy as np

from mlb_batch.cost.schedule import ClipShape
from mlb_batch.vlm.sequence import Trace

Row = dict[str, object]


def selection_rows(annotation_id: str, clip: ClipShape, traces: list[Trace]) -> tuple[Row, ...]:
    return tuple(_row(annotation_id, clip, trace) for trace in traces)


def _row(annotation_id: str, clip: ClipShape, trace: Trace) -> Row:
    kept_by_frame, kept_by_place = _counts(clip, trace.kept_K)
    plain_by_frame, plain_by_place = _counts(clip, _plain(trace)) if trace.score_N is not None else ([], [])
    return {
        "annotation_id": annotation_id,
        "layer": trace.layer,
        "frames": clip.frames,
        "rows": clip.rows,
        "cols": clip.cols,
        "candidates": trace.candidates_N.tolist(),
        "kept": trace.kept_K.tolist(),
        "score": [] if trace.score_N is None else trace.score_N.tolist(),
        "null_score": [] if trace.null_N is None else trace.null_N.tolist(),
        "segment": trace.segment_F.tolist(),
        "kept_by_frame": kept_by_frame,
        "kept_by_place": kept_by_place,
        "plain_by_frame": plain_by_frame,
        "plain_by_place": plain_by_place,
    }


def _plain(trace: Trace) -> np.ndarray:
    """As many candidates of each part with the largest scores; ties go to the lower index."""
    assert trace.score_N is not None
    is_kept_N = np.isin(trace.candidates_N, trace.kept_K)
    part_N = np.zeros(len(is_kept_N), int) if trace.part_N is None else trace.part_N
    return np.concatenate([_top(trace, np.flatnonzero(part_N == part), is_kept_N) for part in np.unique(part_N)])


def _top(trace: Trace, part_P: np.ndarray, is_kept_N: np.ndarray) -> np.ndarray:
    assert trace.score_N is not None
    order = np.argsort(-trace.score_N[part_P], kind="stable")[: is_kept_N[part_P].sum()]
    top: np.ndarray = trace.candidates_N[part_P[order]]
    return top


def _counts(clip: ClipShape, tokens: np.ndarray) -> tuple[list[int], list[int]]:
    by_frame = np.bincount(tokens // clip.tokens_per_frame, minlength=clip.frames)
    by_place = np.bincount(tokens % clip.tokens_per_frame, minlength=clip.tokens_per_frame)
    return by_frame.tolist(), by_place.tolist()
