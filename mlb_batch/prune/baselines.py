"""The baselines that every method is held against, on the same engine and the same budget.

Shapes: N visual tokens still there, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mlb_batch.cost.grids import pool_grid, pool_grid_of
from mlb_batch.cost.schedule import ClipShape, Cut, Schedule, enough_layers, keep_count
from mlb_batch.cost.shapes import ModelShape
from mlb_batch.prune.method import Traits
from mlb_batch.prune.scores import over_heads, spread, top
from mlb_batch.prune.view import Merge, View


def before_first_layer(clip: ClipShape, keep: int, compared: int = 0) -> Schedule:
    """One cut before the language model; the prompt has no say, so every prompt shares what stays."""
    return Schedule(frames=clip.frames, cuts=(Cut(0, keep_count(clip.visual, keep)),), compared=compared)


@dataclass(frozen=True)
class Vanilla:
    """Nothing is pruned; the keep is not looked at."""

    def schedule(self, shape: ModelShape, clip: ClipShape, keep: int) -> Schedule:
        return Schedule(frames=clip.frames)

    def pick(self, view: View, keep: int) -> Tensor:
        raise AssertionError("vanilla has no cut")


@dataclass(frozen=True)
class FastV:
    """FastV (arXiv 2403.06764): one cut at layer 2, by the last prompt token's attention."""

    at: int = field(default=2, metadata={"least": 1})
    heads: str = field(default="mean", metadata={"one_of": ("mean", "max")})

    def schedule(self, shape: ModelShape, clip: ClipShape, keep: int) -> Schedule:
        at = min(self.at, enough_layers(shape) - 1)
        return Schedule(clip.frames, (Cut(at, keep_count(clip.visual, keep)),), rows="last", fork=True)

    def pick(self, view: View, keep: int) -> Tensor:
        assert view.attention_HN is not None
        return top(over_heads(view.attention_HN, self.heads), keep)


@dataclass(frozen=True)
class Random:
    """Tokens at random, seeded by the clip's content: the same clip gives the same tokens, wherever it runs."""

    seed: int = 0

    def schedule(self, shape: ModelShape, clip: ClipShape, keep: int) -> Schedule:
        return before_first_layer(clip, keep)

    def pick(self, view: View, keep: int) -> Tensor:
        generator = torch.Generator().manual_seed((view.seed * 1_000_003 + self.seed) % 2**63)
        chosen = torch.randperm(len(view.alive_N), generator=generator)[:keep]
        return chosen.sort().values.to(view.alive_N.device)


@dataclass(frozen=True)
class Uniform:
    """Tokens evenly spaced over the visual sequence."""

    def schedule(self, shape: ModelShape, clip: ClipShape, keep: int) -> Schedule:
        return before_first_layer(clip, keep)

    def pick(self, view: View, keep: int) -> Tensor:
        return torch.tensor(spread(keep, len(view.alive_N)), device=view.alive_N.device)


@dataclass(frozen=True)
class Frames:
    """Fewer frames, evenly spaced, with all their tokens; the others are not even encoded."""

    def schedule(self, shape: ModelShape, clip: ClipShape, keep: int) -> Schedule:
        frames = keep_count(clip.frames, keep)
        cuts = (Cut(0, frames * clip.tokens_per_frame),) if frames < clip.frames else ()
        return Schedule(frames, cuts)

    def pick(self, view: View, keep: int) -> Tensor:
        raise AssertionError("the frames that are left out are never encoded: nothing is left to pick")


@dataclass(frozen=True)
class Pool(Traits):
    """Spatial mean pooling of every frame to a smaller grid, before the language model."""

    def schedule(self, shape: ModelShape, clip: ClipShape, keep: int) -> Schedule:
        rows, cols = pool_grid(clip.rows, clip.cols, keep)
        return Schedule(clip.frames, (Cut(0, clip.frames * rows * cols),))

    @property
    def renumbers(self) -> bool:
        return True  # what is merged has no place of its own

    def pick(self, view: View, keep: int) -> Merge:
        frames, rows, cols = view.grid
        small_rows, small_cols = pool_grid_of(rows, cols, keep // frames)
        row_N, col_N = view.place_N // cols, view.place_N % cols
        cell_N = (row_N * small_rows // rows) * small_cols + col_N * small_cols // cols
        group_N = view.frame_N * (small_rows * small_cols) + cell_N
        weight_N = 1.0 / torch.bincount(group_N, minlength=keep)[group_N]
        return Merge(group_N, weight_N, keep)
