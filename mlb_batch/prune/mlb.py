"""LLaVA-MLB (arXiv 2503.11205), a reconstruction: the paper's code is not public; PROVENANCE.md labels every step.

A frozen image LLM watches a video in two stages (SegAttn). Compression: short segments of frames run a few layers
each, with the question behind them, and hand on the tokens that the question attends to. Expansion: what they hand on
is joined and runs the remaining layers. Plain attention favours the end of a segment; Gridded Attention Pooling
(GAPool) lets tokens compete only inside a cell of the grid, and the Visual Summarization Tail (VSTail) hands on each
segment's last tokens, which under causal attention have seen all of it.

Shapes: N visual tokens of a segment, H heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mlb_batch.cost.grids import CELLS, cells_before_tail, cells_in
from mlb_batch.cost.schedule import WHOLE, ClipShape, Question, Scan, Schedule, enough_layers
from mlb_batch.cost.shapes import ModelShape
from mlb_batch.prune.method import Traits
from mlb_batch.prune.scores import over_heads, ranked, spread, top
from mlb_batch.prune.view import Merge, Pick, View


@dataclass(frozen=True)
class Mlb(Traits):
    """The whole method; presets: `segattn` (neither), `mlb-g` (GAPool alone), `mlb` (GAPool and VSTail)."""

    grid: bool = True  # tokens compete inside a cell; otherwise over the whole segment
    pool: str = field(default="argmax", metadata={"one_of": ("argmax", "weighted", "mean")})
    tail: int = field(default=24, metadata={"least": 0})
    # The "3rd layer": layers 0..2 run in the first stage, layer 2 gives the scores.
    layer: int = field(default=3, metadata={"least": 1})
    segment: int = field(default=5, metadata={"least": 1})  # frames
    expand: str = field(default="carry", metadata={"one_of": ("carry", "refeed")})
    question: Question = field(default="last", metadata={"one_of": ("last", "mean")})
    heads: str = field(default="mean", metadata={"one_of": ("mean", "max")})
    room: int = field(default=256, metadata={"least": 0})  # tokens of the context kept free for the answer

    def schedule(self, shape: ModelShape, clip: ClipShape, keep: int) -> Schedule:
        wanted = min(clip.visual * keep // WHOLE, self._most(shape, clip))
        per_segment = self._frames_a_segment(shape, clip)
        frames = self._frames(clip, per_segment, wanted)
        segments = _split(frames, per_segment)
        layers = min(self.layer, enough_layers(shape) - 1)
        return Schedule(
            frames=frames,
            scan=self._scan(clip, segments, layers, wanted),
            rows="last",
            fork=True,
        )

    def _most(self, shape: ModelShape, clip: ClipShape) -> int:
        """Visual tokens that the second stage can take: beyond the context RoPE is scaled, by two at most."""
        return 2 * shape.decoder.context - clip.longest_text - self.room

    def fits(self, shape: ModelShape, clip: ClipShape) -> bool:
        """Whether the context has room for the prompt, the answer, and the least that can be handed on."""
        one_frame = clip.longest_text + clip.tokens_per_frame <= shape.decoder.context
        return one_frame and self._least(clip, 1) <= self._most(shape, clip)

    def bounded(self, shape: ModelShape, clip: ClipShape, keep: int) -> bool:
        """Whether it is the context, and not the keep, that says how many tokens are handed on."""
        return clip.visual * keep // WHOLE > self._most(shape, clip)

    def _frames_a_segment(self, shape: ModelShape, clip: ClipShape) -> int:
        """Frames of a segment: as asked, or as many as the unscaled context holds."""
        return max(1, min(self.segment, (shape.decoder.context - clip.longest_text) // clip.tokens_per_frame))

    def _frames(self, clip: ClipShape, per_segment: int, wanted: int) -> int:
        """All frames, or fewer where even the coarsest step of all of them is more than wanted."""
        for frames in range(clip.frames, 1, -1):
            if sum(self._least(clip, f) for f in _split(frames, per_segment)) <= wanted:
                return frames
        return 1

    def _least(self, clip: ClipShape, frames: int) -> int:
        return self._kept(clip, frames, CELLS[-1]) if self.grid else 1

    def _kept(self, clip: ClipShape, frames: int, cell: tuple[int, int]) -> int:
        """Tokens that a segment hands on: its cells, without those that lie in the tail, and the tail."""
        tail = self._tail(clip, frames)
        whole, cut = divmod(tail, clip.tokens_per_frame)
        full_frames = frames - whole - (cut > 0)
        cells = full_frames * cells_in(clip.rows, clip.cols, cell)
        return cells + (cells_before_tail(clip.rows, clip.cols, cell, cut) if cut else 0) + tail

    def _tail(self, clip: ClipShape, frames: int) -> int:
        return min(self.tail, frames * clip.tokens_per_frame)

    def _scan(self, clip: ClipShape, segments: tuple[int, ...], layers: int, wanted: int) -> Scan:
        if not self.grid:
            kept = _proportional(segments, max(wanted, len(segments)), clip.tokens_per_frame)
            cells: tuple[tuple[int, int], ...] = ((1, 1),) * len(segments)
        else:
            cells = self._mix(clip, segments, wanted)
            kept = tuple(self._kept(clip, f, c) for f, c in zip(segments, cells, strict=True))
        return Scan(segments, layers, kept, cells, self.tail, self.expand == "refeed", self.question)

    def _mix(self, clip: ClipShape, segments: tuple[int, ...], wanted: int) -> tuple[tuple[int, int], ...]:
        """A cell for each segment: of all mixes of neighbouring grids, the one that hands on most of what is wanted.

        On frames of very few tokens a finer grid may hand on less than a coarser one, so the last that fits won't do.
        """
        kept = {(frames, cell): self._kept(clip, frames, cell) for frames in set(segments) for cell in CELLS}
        best, most = (CELLS[-1],) * len(segments), 0
        for cells in _mixes(len(segments)):
            total = sum(kept[one] for one in zip(segments, cells, strict=True))
            if most <= total <= wanted:
                best, most = cells, total
        return best

    def pick(self, view: View, keep: int) -> Pick:
        assert view.attention_HN is not None and view.cell is not None
        score_N = over_heads(view.attention_HN, self.heads)
        if not self.grid:
            return _best_and_tail(score_N, keep, min(view.tail, keep))
        body = len(score_N) - min(view.tail, len(score_N))
        group_N = cell_of(view, body)
        if self.pool == "argmax":
            return _best_of_cells(score_N, group_N)
        weight_N = _cell_weights(score_N if self.pool == "weighted" else torch.ones_like(score_N), group_N)
        return Merge(group_N, weight_N, int(group_N.max()) + 1)


SegAttn = replace(Mlb(), grid=False, tail=0)
MlbG = replace(Mlb(), tail=0)


def cell_of(view: View, body: int) -> Tensor:
    """The cell of each token, numbered in order of time and raster; each token of the tail is a cell of its own."""
    assert view.cell
    _, rows, cols = view.grid
    row_N, col_N = view.place_N // cols, view.place_N % cols
    across = -(-cols // view.cell[1])
    down = -(-rows // view.cell[0])
    cell_N = (view.frame_N * down + row_N // view.cell[0]) * across + col_N // view.cell[1]
    _, body_group = torch.unique(cell_N[:body], return_inverse=True)
    cells = int(body_group.max()) + 1 if body else 0
    tail_group = cells + torch.arange(len(cell_N) - body, device=cell_N.device)
    return torch.cat([body_group, tail_group])


def _best_and_tail(score_N: Tensor, keep: int, tail: int) -> Tensor:
    """Without a grid: the last tokens, and of those before them the best."""
    body = len(score_N) - tail
    return torch.cat([top(score_N[:body], keep - tail), torch.arange(body, len(score_N), device=score_N.device)])


def _best_of_cells(score_N: Tensor, group_N: Tensor) -> Tensor:
    """The best token of every cell, in order of index."""
    order = ranked(score_N)
    by_cell = order[torch.sort(group_N[order], stable=True).indices]
    first = torch.ones_like(by_cell, dtype=torch.bool)
    first[1:] = group_N[by_cell][1:] != group_N[by_cell][:-1]
    return by_cell[first].sort().values


def _cell_weights(score_N: Tensor, group_N: Tensor) -> Tensor:
    """Scores normalised inside each cell; a cell without any attention is averaged."""
    total = torch.zeros(int(group_N.max()) + 1, device=score_N.device).index_add_(0, group_N, score_N)
    count = torch.bincount(group_N)
    paid_N = total[group_N]
    return torch.where(paid_N > 0, score_N / paid_N.clamp(min=torch.finfo(paid_N.dtype).tiny), 1.0 / count[group_N])


def _split(frames: int, per_segment: int) -> tuple[int, ...]:
    """Segments of consecutive frames; the last may be shorter."""
    full, rest = divmod(frames, per_segment)
    return (per_segment,) * full + ((rest,) if rest else ())


def _proportional(segments: tuple[int, ...], wanted: int, tokens_per_frame: int) -> tuple[int, ...]:
    """`wanted` tokens over the segments, in proportion to their frames; each keeps one, none more than it has."""
    frames, total = sum(segments), min(wanted, sum(segments) * tokens_per_frame)
    edges, out = 0, []
    for f in segments:
        before, edges = edges, edges + f
        out.append(max(1, total * edges // frames - total * before // frames))
    return tuple(out)


def _mixes(segments: int) -> Iterator[tuple[tuple[int, int], ...]]:
    """Every mix of two neighbouring grids, from the coarsest to the finest, one segment finer each time."""
    for coarse, fine in zip(CELLS[:0:-1], CELLS[-2::-1], strict=True):
        for finer in range(segments + 1):
            chosen = set(spread(finer, segments)) if finer else set()
            yield tuple(fine if i in chosen else coarse for i in range(segments))
