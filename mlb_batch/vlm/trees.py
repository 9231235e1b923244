"""The packed row of tokens: a forest of trunks (what prompts share) and branches (the prompts themselves).

A tree is one trunk - system prompt, visual tokens, closing tokens - and a branch for each prompt that hangs on it.
Every branch sees its trunk and itself. Where a clip's prompts part, a tree of many branches becomes many trees of one.

Shapes: T packed tokens, N visual tokens, D width, H query heads, Q query rows, h key/value heads, d head width, S keys
of a sequence.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mlb_batch.vlm.attention import Lengths, attend_last, attend_varlen, packs
from mlb_batch.vlm.rope import Rope


@dataclass(frozen=True)
class Tree:
    clip: int  # which clip of the call
    segment: int  # which segment of the clip in a scan; 0 elsewhere
    prompts: tuple[int, ...]  # which prompts of the clip hang here
    prefix: int
    visual_N: Tensor  # the visual tokens in the trunk, by their place in the clip (ascending)
    trailer: int
    branches: tuple[int, ...]  # tokens of each prompt
    span: int  # visual places up to the trailer: what positions count, whether tokens left or not

    @property
    def trunk(self) -> int:
        return self.prefix + len(self.visual_N) + self.trailer

    @property
    def length(self) -> int:
        return self.trunk + sum(self.branches)

    @property
    def visual(self) -> slice:
        """Where the visual tokens stand in the tree."""
        return slice(self.prefix, self.prefix + len(self.visual_N))

    def branch(self, i: int) -> slice:
        """Where a branch stands in the tree."""
        start = self.trunk + sum(self.branches[:i])
        return slice(start, start + self.branches[i])

    def trunk_positions(self) -> Tensor:
        """RoPE positions of the trunk; a token that stays keeps its own, whatever left around it."""
        device = self.visual_N.device
        after = self.prefix + self.span
        return torch.cat([
            torch.arange(self.prefix, device=device),
            self.prefix + self.visual_N,
            torch.arange(after, after + self.trailer, device=device),
        ])  # fmt: skip

    def branch_positions(self, i: int) -> Tensor:
        start = self.prefix + self.span + self.trailer
        return torch.arange(start, self.next_position(i), device=self.visual_N.device)

    def next_position(self, i: int) -> int:
        """Of the first token behind a branch."""
        return self.prefix + self.span + self.trailer + self.branches[i]

    @property
    def positions(self) -> Tensor:
        return torch.cat([self.trunk_positions(), *(self.branch_positions(i) for i in range(len(self.branches)))])


@dataclass(frozen=True)
class Run:
    """One call of the attention kernel: consecutive rows of the pack, and the stretches of it that they see."""

    tree: int
    start: int
    rows: int
    seen: tuple[tuple[int, int], ...]

    @property
    def keys(self) -> int:
        return sum(stop - start for start, stop in self.seen)


@dataclass
class Forest:
    """The layout of one packed call; after a layer ran it holds that layer's keys, values and tapped queries."""

    trees: list[Tree]
    tap_T: Tensor | None = None  # packed rows whose queries are wanted
    keys_hTd: Tensor = field(init=False)
    values_hTd: Tensor = field(init=False)
    tapped_HQd: Tensor = field(init=False)

    def __post_init__(self) -> None:
        starts = [0]
        for tree in self.trees:
            starts.append(starts[-1] + tree.length)
        self.starts = starts[:-1]
        self.length = starts[-1]
        self.runs = [run for i, tree in enumerate(self.trees) for run in _runs(i, tree, self.starts[i])]
        if self.trees[0].visual_N.is_cuda:  # once for all layers: every journey to the device makes the host wait
            self._lengths = Lengths.of([r.rows for r in self.runs], [r.keys for r in self.runs], self._device)
            self._seen_S = self._seen()

    def rotations(self, ropes: list[Rope], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin of every packed token, each tree by its own frequencies."""
        parts = [rope.cos_sin(tree.positions, dtype) for tree, rope in zip(self.trees, ropes, strict=True)]
        return torch.cat([c for c, _ in parts])[None], torch.cat([s for _, s in parts])[None]

    def branch(self, tree: int, i: int) -> tuple[int, int]:
        """Where a branch stands in the pack."""
        rows = self.trees[tree].branch(i)
        return self.starts[tree] + rows.start, self.starts[tree] + rows.stop

    def sequence(self, x_hTd: Tensor, tree: int, i: int) -> Tensor:
        """The trunk of a tree and one of its branches, as one sequence."""
        start = self.starts[tree]
        return _stretches(x_hTd, ((start, start + self.trees[tree].trunk), self.branch(tree, i)))

    def calls(self, tree: int) -> list[tuple[int, int]]:
        """The (queries, keys) rectangles of a tree."""
        return [(run.rows, run.keys) for run in self.runs if run.tree == tree]

    def attend(self, layer: int, q_HTd: Tensor, k_hTd: Tensor, v_hTd: Tensor, scale: float) -> Tensor:
        assert q_HTd.shape[1] == self.length, (q_HTd.shape, self.length)
        self.keys_hTd, self.values_hTd = k_hTd, v_hTd
        if self.tap_T is not None:
            self.tapped_HQd = q_HTd[:, self.tap_T]
        if packs(q_HTd):
            return self._attend_packed(q_HTd, k_hTd, v_hTd, scale)
        out_HTd = torch.empty_like(q_HTd)
        for run in self.runs:
            rows = slice(run.start, run.start + run.rows)
            k_hSd, v_hSd = _stretches(k_hTd, run.seen), _stretches(v_hTd, run.seen)
            out_HTd[:, rows] = attend_last(q_HTd[:, rows], k_hSd, v_hSd, scale)
        return out_HTd

    def _attend_packed(self, q_HTd: Tensor, k_hTd: Tensor, v_hTd: Tensor, scale: float) -> Tensor:
        """One kernel call for all runs: they cover the pack in order, and each brings the keys that it sees."""
        if self._seen_S is not None:
            k_hTd, v_hTd = k_hTd[:, self._seen_S], v_hTd[:, self._seen_S]
        return attend_varlen(q_HTd, k_hTd, v_hTd, self._lengths, scale)

    def _seen(self) -> Tensor | None:
        """The packed rows that the runs see, run by run; None where each sees itself and nothing else."""
        if all(run.seen == ((run.start, run.start + run.rows),) for run in self.runs):
            return None
        return torch.cat([torch.arange(a, b, device=self._device) for run in self.runs for a, b in run.seen])

    @property
    def _device(self) -> torch.device:
        return self.trees[0].visual_N.device


def groups(trees: list[Tree], most: int) -> list[list[Tree]]:
    """Consecutive trees that are packed together: no more than `most` tokens, or a single tree."""
    out: list[list[Tree]] = []
    left = 0
    for tree in trees:
        if not out or tree.length > left:
            out.append([])
            left = most
        out[-1].append(tree)
        left -= tree.length
    return out


def _runs(index: int, tree: Tree, start: int) -> list[Run]:
    """A lone branch and its trunk are one causal sequence; several branches each look at the trunk and themselves."""
    if len(tree.branches) == 1:
        return [Run(index, start, tree.length, ((start, start + tree.length),))]
    trunk = (start, start + tree.trunk)
    runs = [Run(index, start, tree.trunk, (trunk,))]
    for i, rows in enumerate(tree.branches):
        at = start + tree.branch(i).start
        runs.append(Run(index, at, rows, (trunk, (at, at + rows))))
    return runs


def _stretches(x_hTd: Tensor, stretches: tuple[tuple[int, int], ...]) -> Tensor:
    """Stretches of the pack as one sequence; neighbours are one slice, not a copy."""
    (start, stop), *rest = stretches
    if all(a == b for (_, a), (b, _) in zip(stretches, rest, strict=False)):
        return x_hTd[:, start : rest[-1][1] if rest else stop]
    return torch.cat([x_hTd[:, a:b] for a, b in stretches], dim=1)
