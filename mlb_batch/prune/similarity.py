"""Two query-agnostic families, each our own statement of the idea: tokens leave before the first layer.

`density` (the FastVID kind): a token stands for its neighbourhood, so dense centres that lie far from each other stay.
`unique` (the VidCom2 kind): frames and tokens that differ from the mean say what the mean does not.

Shapes: N visual tokens, F frames, P tokens of a frame, S segments, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mlb_batch.cost.schedule import ClipShape, Schedule
from mlb_batch.cost.shapes import ModelShape
from mlb_batch.prune.baselines import before_first_layer
from mlb_batch.prune.method import Traits
from mlb_batch.prune.scores import best_of_each, counted, join_most_similar, ranked, ranks, segments, shares, top
from mlb_batch.prune.view import View

_WHOLE = 2**32  # a share of 1, where shares are counted in whole numbers


@dataclass(frozen=True)
class Density(Traits):
    """Segments by frame similarity share the keep by their frames; inside one, density peaks of its frames stay."""

    tau: float = 0.9
    neighbours: int = field(default=4, metadata={"least": 1})

    def schedule(self, shape: ModelShape, clip: ClipShape, keep: int) -> Schedule:
        return before_first_layer(clip, keep, compared=clip.frames * clip.tokens_per_frame**2)

    def segments(self, view: View) -> Tensor:
        return segments(view.feature_FD, self.tau)

    def pick(self, view: View, keep: int) -> Tensor:
        frames, places = view.grid[0], view.grid[1] * view.grid[2]
        unit_FPD = torch.nn.functional.normalize(view.embed_ND.float(), dim=-1).view(frames, places, -1)
        score_N = torch.cat([density_peaks(unit_PD, self.neighbours) for unit_PD in unit_FPD])
        segment_F = join_most_similar(self.segments(view), view.feature_FD, keep)
        size_S = counted(segment_F, frames) * places
        return best_of_each(segment_F[view.frame_N], ranks(ranked(score_N)), shares(size_S, size_S, keep), keep)


@dataclass(frozen=True)
class Unique:
    """Frames share the keep by how much they differ from the clip's mean; inside one, the most unusual tokens stay."""

    def schedule(self, shape: ModelShape, clip: ClipShape, keep: int) -> Schedule:
        return before_first_layer(clip, keep, compared=2 * clip.visual)

    def pick(self, view: View, keep: int) -> Tensor:
        frames, places = view.grid[0], view.grid[1] * view.grid[2]
        unit_FPD = torch.nn.functional.normalize(view.embed_ND.float(), dim=-1).view(frames, places, -1)
        of_clip_FP = _distance_to(unit_FPD, unit_FPD.mean(dim=(0, 1)))
        of_frame_FP = _distance_to(unit_FPD, unit_FPD.mean(dim=1, keepdim=True))
        score_N = (of_clip_FP + of_frame_FP).flatten()
        if keep < frames:  # not one token for every frame: the most unusual ones of the clip
            return top(score_N, keep)
        frame_F = torch.softmax(of_clip_FP.mean(dim=1) / _spread(of_clip_FP.mean(dim=1)), dim=0)
        weight_F = (frame_F.double() * _WHOLE).long().clamp(min=1)
        counts_F = shares(weight_F, torch.full_like(weight_F, places), keep)
        return best_of_each(view.frame_N, ranks(ranked(score_N)), counts_F, keep)


def density_peaks(unit_PD: Tensor, neighbours: int) -> Tensor:
    """Density of each token times its distance to the nearest denser one (the largest distance, for the densest)."""
    distance_PP = (1 - unit_PD @ unit_PD.T).clamp(min=0)
    nearest = min(neighbours + 1, len(unit_PD))  # itself among them
    density_P = torch.exp(-distance_PP.topk(nearest, largest=False).values.mean(dim=-1))
    rank_P = ranks(ranked(density_P))
    denser_PP = rank_P[None, :] < rank_P[:, None]
    to_denser_P = torch.where(denser_PP, distance_PP, torch.inf).amin(dim=-1)
    return density_P * torch.where(to_denser_P.isinf(), distance_PP.amax(dim=-1), to_denser_P)


def _distance_to(unit_FPD: Tensor, mean_D: Tensor) -> Tensor:
    return 1 - (unit_FPD * torch.nn.functional.normalize(mean_D, dim=-1)).sum(-1)


def _spread(x_F: Tensor) -> Tensor:
    return x_F.std(unbiased=False).clamp(min=1e-6)
