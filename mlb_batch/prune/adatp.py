"""AdaTP (arXiv 2505.20100), a reconstruction: the paper's code is not public; PROVENANCE.md labels every step.

Text-to-visual attention has a global bias (towards the two ends of the visual sequence) and a local one (towards the
same spatial positions in frame after frame). AdaTP cuts progressively, by attention that is debiased in both ways:
segments that matter to the text get a larger share of the tokens that stay, and inside a segment a spatial position
is represented once before any position may come twice.

Shapes: N visual tokens still there, F frames, S segments, P places of a frame, H heads, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

import torch
from torch import Tensor

from mlb_batch.cost.schedule import ClipShape, Cut, Rows, Schedule, enough_layers, keep_count
from mlb_batch.cost.shapes import ModelShape
from mlb_batch.errors import SpecError
from mlb_batch.prune.method import Traits
from mlb_batch.prune.scores import (
    best_of_each,
    counted,
    join_most_similar,
    over_heads,
    ranked,
    ranks,
    segments,
    shares,
)
from mlb_batch.prune.view import View

_TINY = 1e-12  # keeps a division by a position that gets no attention at all finite
_ROUNDING = 1e-4  # far above what sums in another order change, far below what content does


@dataclass(frozen=True)
class AdaTP(Traits):
    features: str = field(default="paired", metadata={"one_of": ("paired", "attention")})
    debias_global: str = field(
        default="segments", metadata={"option": "global", "one_of": ("segments", "position", "both", "none")}
    )
    debias_local: str = field(default="dedup", metadata={"option": "local", "one_of": ("dedup", "suppress", "none")})
    score: Rows = field(default="last", metadata={"one_of": ("last", "question")})
    heads: str = field(default="mean", metadata={"one_of": ("mean", "max")})
    fall: str | tuple[float, ...] = field(
        default="geometric",
        metadata={"option": "schedule", "one_of": ("geometric", "one_shot", "linear", "steep"), "steps": True},
    )
    spend: str = field(default="exact", metadata={"one_of": ("exact", "cap")})
    tau: float = 0.95
    boost: float = field(default=2.0, metadata={"least": 1.0, "most": 1000.0})

    def schedule(self, shape: ModelShape, clip: ClipShape, keep: int) -> Schedule:
        layers = cut_layers(enough_layers(shape))
        shares_ = self._shares_left(len(layers), keep_count(clip.visual, keep) / clip.visual)
        if self.fall == "one_shot":
            layers = layers[:1]
        counts = [max(1, round(clip.visual * s)) for s in shares_[:-1]] + [keep_count(clip.visual, keep)]
        return Schedule(
            frames=clip.frames,
            cuts=tuple(Cut(at, count) for at, count in zip(layers, counts, strict=True)),
            rows=self.score,
            fork=True,
            null_layers=layers[0] if self._needs_null else 0,
            features=self.uses_pair,
        )

    def _shares_left(self, cuts: int, last: float) -> list[float]:
        """The share of the tokens left after each cut, ending at `last`."""
        if isinstance(self.fall, tuple):
            if len(self.fall) != cuts or self.fall[-1] != 1:
                raise SpecError(
                    f"prune.options.schedule: list {cuts} steps, one for each cut of this model, the last of them 1"
                )
            return [1 - (1 - last) * step for step in self.fall]
        if self.fall == "one_shot":
            return [last]
        even = [(j + 1) / cuts for j in range(cuts)]
        if self.fall == "geometric":
            return [last**step for step in even]
        return [1 - (1 - last) * step for step in (_steep(cuts) if self.fall == "steep" else even)]

    @property
    def _by_segment(self) -> bool:
        return self.debias_global in ("segments", "both")

    @property
    def uses_pair(self) -> bool:
        return self._by_segment and self.features == "paired"

    @property
    def _needs_null(self) -> bool:
        return self.debias_global in ("position", "both") or (self._by_segment and self.features == "attention")

    @property
    def exact(self) -> bool:
        return self.spend == "exact"

    @property
    def relevance_source(self) -> str:
        return self.features if self._by_segment else "none"

    def segments(self, view: View) -> Tensor:
        return segments(view.feature_FD, self.tau)

    def pick(self, view: View, keep: int) -> Tensor:
        debiased_N = self._debiased(view)
        segment_F = self.segments(view)
        segment_N = segment_F[view.frame_N]
        score_N = suppressed(debiased_N, segment_N, view) if self.debias_local == "suppress" else debiased_N
        rank_N = ranks(ranked(score_N))
        if self.debias_local == "dedup" or self.spend == "cap":
            first_N = representatives(rank_N, segment_N, view)
            if self.spend == "cap":
                keep = min(keep, int(first_N.sum()))
            if self.debias_local == "dedup":  # representatives before the others
                rank_N = rank_N + len(rank_N) * ~first_N
        if self._by_segment:
            return self._pick_by_segment(view, segment_F, debiased_N, rank_N, keep)
        return best_of_each(torch.zeros_like(rank_N), rank_N, torch.full_like(rank_N[:1], keep), keep)

    def _pick_by_segment(self, view: View, segment_F: Tensor, score_N: Tensor, rank_N: Tensor, keep: int) -> Tensor:
        """There are at most as many segments as frames; those that are not there have no frames and no tokens."""
        most = view.grid[0]
        segment_F = _squeezed(join_most_similar(segment_F, view.feature_FD, keep), view)
        label_N = segment_F[view.frame_N]
        frames_S, alive_S = counted(segment_F, most), counted(label_N, most)
        total_S = torch.zeros(most, device=rank_N.device).index_add_(0, segment_F, self._relevance(view, score_N))
        relevance_S = total_S / frames_S.clamp(min=1)
        above_S = relevance_S > relevance_S.sum() / (frames_S > 0).sum()
        return best_of_each(label_N, rank_N, shares(self._weights(frames_S, above_S), alive_S, keep), keep)

    def _weights(self, frames_S: Tensor, above_S: Tensor) -> Tensor:
        """Frames of a segment, boosted where its relevance to the text is above the mean of the segments."""
        boost, plain = Fraction(str(self.boost)).limit_denominator(1000).as_integer_ratio()  # 64 bits hold their sums
        return frames_S * torch.where(above_S, boost, plain)

    def _relevance(self, view: View, score_N: Tensor) -> Tensor:
        """Relevance of each frame: the paired model's similarity, else the debiased attention to its tokens."""
        if self.features == "paired":
            assert view.relevance_F is not None, "no paired model looked at this clip"
            return view.relevance_F.float()
        total_F = torch.zeros(view.grid[0], device=score_N.device).index_add_(0, view.frame_N, score_N)
        return total_F / counted(view.frame_N, view.grid[0]).clamp(min=1)

    def _debiased(self, view: View) -> Tensor:
        """Attention, divided by what the same prompt puts on the position when it has no content."""
        assert view.attention_HN is not None
        score_N = over_heads(view.attention_HN, self.heads)
        if not self._needs_null:
            return score_N
        assert view.null_HN is not None
        null_N = over_heads(view.null_HN, self.heads)
        same_N = torch.isclose(score_N, null_N, rtol=_ROUNDING, atol=0)  # a clip that stands still has no content to it
        return torch.where(same_N, 1.0, score_N / (null_N + _TINY))


def cut_layers(layers: int) -> list[int]:
    """Every layer from 2 to 16 of 28, and in proportion at other depths; two cuts at least where there is room."""
    first = max(1, round(2 * layers / 28))
    last = min(layers - 1, max(first + 1, round(16 * layers / 28)))
    return list(range(first, last + 1))


def _steep(cuts: int) -> list[float]:
    """Half of what leaves goes at the first cut, four tenths at the second, the last tenth evenly from there on."""
    return [0.5, *(1 - 0.1 * (cuts - 1 - j) / (cuts - 1) for j in range(1, cuts))]


def representatives(rank_N: Tensor, segment_N: Tensor, view: View) -> Tensor:
    """True where a token has the best rank of its spatial position in its segment."""
    frames, places = view.grid[0], view.grid[1] * view.grid[2]
    key_N = segment_N * places + view.place_N
    best = torch.full((frames * places,), len(rank_N), device=rank_N.device).scatter_reduce_(0, key_N, rank_N, "amin")
    return rank_N == best[key_N]


def suppressed(score_N: Tensor, segment_N: Tensor, view: View) -> Tensor:
    """Scores scaled by s / (s + what the neighbours in time have at the same position, in the same segment)."""
    frames, rows, cols = view.grid
    grid_FP = torch.zeros(frames + 2, rows * cols, device=score_N.device)  # an empty frame at either end
    label_FP = torch.full((frames + 2, rows * cols), -1, dtype=torch.long, device=score_N.device)
    at = (view.frame_N + 1, view.place_N)
    grid_FP[at], label_FP[at] = score_N, segment_N
    around_N = torch.zeros_like(score_N)
    for step in (-1, 1):
        there = (at[0] + step, at[1])
        around_N = around_N + grid_FP[there] * (label_FP[there] == segment_N)
    return score_N * score_N / (score_N + around_N + _TINY)


def _squeezed(segment_F: Tensor, view: View) -> Tensor:
    """Segments without any token left are joined to the one before, so that every segment can take a share."""
    alive_S = counted(segment_F[view.frame_N], len(segment_F)) > 0
    return (alive_S.long().cumsum(0) - 1).clamp(min=0)[segment_F]
