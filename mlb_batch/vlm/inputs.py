"""One clip as the engine takes it: embedded text and visual tokens, and what methods may look at besides.

Shapes: P text tokens of the prefix, F frames, N visual tokens, R trailer tokens, S tokens of a prompt, D hidden
width, V feature width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mlb_batch.cost.schedule import ClipShape, Schedule


@dataclass(frozen=True)
class ClipInput:
    shape: ClipShape
    schedule: Schedule
    keep: int  # millionths that the schedule was made for
    prefix_PD: Tensor
    visual_ND: Tensor  # of the encoded frames
    place_N: Tensor  # where they stand among the clip's visual tokens
    trailer_RD: Tensor
    suffixes_SD: tuple[Tensor, ...]
    feature_FV: Tensor  # one vector an encoded frame
    relevance_F: tuple[Tensor, ...] | None  # per prompt: similarity of the text to each frame, by a paired model
    seed: int  # from the content
    trace: bool  # record what is selected

    def mean_frame_ND(self) -> Tensor:
        """The clip with every frame replaced by their mean: positions without content."""
        per_frame = self.shape.tokens_per_frame
        frames_FPD = self.visual_ND.float().view(-1, per_frame, self.visual_ND.shape[-1])
        return frames_FPD.mean(0).repeat(len(frames_FPD), 1).to(self.visual_ND.dtype)

    def relevance(self, prompts: tuple[int, ...]) -> Tensor | None:
        """Relevance of each frame to several prompts together."""
        if self.relevance_F is None:
            return None
        return torch.stack([self.relevance_F[p] for p in prompts]).mean(dim=0)
