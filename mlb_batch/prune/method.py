"""What a method is: two functions, and what it may say of itself besides.

Shapes: F frames, D width.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from mlb_batch.cost import schedule
from mlb_batch.cost.schedule import ClipShape
from mlb_batch.cost.shapes import ModelShape
from mlb_batch.prune.view import Pick, View


class Method(schedule.Method, Protocol):
    def pick(self, view: View, keep: int) -> Pick:
        """Which stay: a pure function."""


class Traits:
    """What is so of a method that says nothing of itself; one of which something else is so derives from this."""

    @property
    def exact(self) -> bool:
        """Whether the keep is spent to the token on every clip."""
        return True

    @property
    def renumbers(self) -> bool:
        """Whether what stays of a clip is numbered anew, where it else keeps its own positions."""
        return False

    @property
    def relevance_source(self) -> str:
        """What says how much a segment matters to the prompt: paired | attention | none."""
        return "none"

    def segments(self, view: View) -> Tensor:
        """The frame-segment of each frame, as the method sees them; all one where it does not look for any."""
        return torch.zeros(len(view.feature_FD), dtype=torch.long, device=view.feature_FD.device)

    def fits(self, shape: ModelShape, clip: ClipShape) -> bool:
        """Whether the model's context has room for the clip; a one-pass method does not ask for any."""
        return True

    def bounded(self, shape: ModelShape, clip: ClipShape, keep: int) -> bool:
        """Whether fewer tokens are handed on than the keep allows, since the context holds no more."""
        return False
