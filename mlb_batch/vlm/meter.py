"""Counts what the engine runs, from the shapes that it really runs; cost.flops prices the same from a schedule."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from mlb_batch.cost import flops, paper
from mlb_batch.cost.flops import Bill
from mlb_batch.cost.shapes import ModelShape

# Why a layer runs. A scan whose tokens start again, and a content-free copy, only serve the scoring.
Reason = Literal["prefill", "scan", "null"]


class Meter:
    """One clip's running bill."""

    def __init__(self, shape: ModelShape) -> None:
        self._shape = shape
        self._parts: Counter[str] = Counter()
        self.paper_macs = 0  # the papers' convention: multiply-adds of the clip's visual tokens

    def encode(self, images: int) -> None:
        self._parts["vision"] += flops.encode(self._shape, images)

    def features(self, operations: int) -> None:
        self._parts["vision"] += operations

    def layer(self, reason: Reason, tokens: int, visual: int, calls: list[tuple[int, int]]) -> None:
        """One decoder layer over `tokens` tokens, whose attention ran as (queries, keys) rectangles."""
        attended = sum(self._attended(q, k) for q, k in calls)
        part = "prefill" if reason == "prefill" else "scoring"
        self._parts[part] += flops.layer(self._shape.decoder, tokens, attended)
        if reason != "null":
            self.paper_macs += paper.layer_macs(self._shape.decoder, visual)

    def rows(self, queries: int, keys: int) -> None:
        """Scores: `queries` last rows of a sequence against its `keys` keys."""
        self._parts["scoring"] += flops.score_rows(self._shape.decoder, self._attended(queries, keys))

    def compare(self, compared: int) -> None:
        self._parts["scoring"] += flops.compare(self._shape.decoder, compared)

    def _attended(self, queries: int, keys: int) -> int:
        return flops.pairs(queries, keys - queries)

    @property
    def bill(self) -> Bill:
        return Bill(**self._parts)
