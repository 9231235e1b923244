"""What prefill hands over to generation: one prompt's last hidden state and, layer by layer, its keys and values.

Shapes: D hidden width, h key/value heads, S cached keys of a layer, d head width, N visual tokens, F frames.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor

from mlb_batch.vlm.rope import Rope


@dataclass(frozen=True)
class Trace:
    """One selection, for the record: which tokens went on at a layer, from which, and what each was paid."""

    layer: int
    candidates_N: np.ndarray
    kept_K: np.ndarray
    score_N: np.ndarray | None
    null_N: np.ndarray | None  # what its position is paid without content, where that was measured
    segment_F: np.ndarray  # the frame-segment of each frame that was encoded
    part_N: np.ndarray | None = None  # the part of the clip whose candidates are scored and chosen among themselves


@dataclass(frozen=True)
class Prefilled:
    """Three lengths are apart here: the keys of each layer, the next position, and the tokens generated so far."""

    last_D: Tensor
    keys: list[Tensor]  # per layer, h x S x d: layers below a cut hold more than those above it
    values: list[Tensor]
    next_position: int
    kept_N: Tensor  # visual tokens behind the last cut, by their place in the clip
    segments: int
    rope: Rope
    trace: list[Trace] = field(default_factory=list)

    def copy(self) -> Prefilled:
        """For who generates more than once from the same caches: those who generate forget what they were given."""
        return replace(self, keys=list(self.keys), values=list(self.values))

    def next_layer(self) -> tuple[Tensor, Tensor]:
        """The keys and values, S x h x d, of the lowest layer that is still here, from here on the caller's alone."""
        return self.keys.pop(0).transpose(0, 1), self.values.pop(0).transpose(0, 1)

    def forget(self) -> None:
        """All caches that are still here."""
        self.keys.clear()
        self.values.clear()
