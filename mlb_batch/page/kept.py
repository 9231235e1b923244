"""Selections -> for every visual token of the frames shown, after which cut it was gone.

Cuts only ever take away, so one small number a token holds all of them: the cut that it left at, or the number of cuts
where it stayed to the end.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MOST_CUTS = 254


@dataclass(frozen=True)
class Kept:
    """What the cuts left of one clip, for one answer."""

    rows: int
    cols: int
    tokens: int
    cuts: tuple[tuple[int, int], ...]  # (layer, tokens that were left from it on)
    left_at: str  # base64, one byte a token of the frames shown

    def as_json(self) -> dict[str, Any]:
        return {"rows": self.rows, "cols": self.cols, "tokens": self.tokens, "cuts": self.cuts, "leftAt": self.left_at}


def kept(cuts: Sequence[Mapping[str, Any]], frames_shown: Sequence[int]) -> Kept:
    """`cuts`: the rows of selections/ of one annotation."""
    cuts = sorted(cuts, key=lambda cut: int(cut["layer"]))[-MOST_CUTS:]
    frames, rows, cols = (int(cuts[0][name]) for name in ("frames", "rows", "cols"))
    left_at_N = np.full(frames * rows * cols, len(cuts), np.uint8)
    for number, cut in enumerate(cuts):
        gone_N = np.ones(len(left_at_N), bool)
        gone_N[cut["kept"]] = False
        left_at_N[gone_N & (left_at_N == len(cuts))] = number
    shown = left_at_N.reshape(frames, rows * cols)[list(frames_shown)]
    counts = tuple((int(cut["layer"]), len(cut["kept"])) for cut in cuts)
    return Kept(rows, cols, len(left_at_N), counts, base64.b64encode(shown.tobytes()).decode())
