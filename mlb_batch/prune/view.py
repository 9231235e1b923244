"""What a method sees, and what it answers.

Shapes: N visual tokens still there, F frames of the clip, H heads, D width, K tokens that go on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class View:
    """One clip's visual tokens at one cut (or, in a scan, one segment's)."""

    grid: tuple[int, int, int]  # frames, rows, columns
    alive_N: Tensor  # which tokens of the grid are still there, ascending
    embed_ND: Tensor  # what the projector emitted for them
    feature_FD: Tensor  # one vector a frame
    attention_HN: Tensor | None = None  # fp32 softmax over all that a query row may see, mean over the query rows
    null_HN: Tensor | None = None  # the same where every frame is the clip's mean frame
    relevance_F: Tensor | None = None  # text-to-frame similarity of a paired model
    cell: tuple[int, int] | None = None  # in a scan: rows x columns of a pooling cell
    tail: int = 0  # in a scan: how many last tokens are kept as they are
    seed: int = 0  # from the clip's content

    @property
    def frame_N(self) -> Tensor:
        return self.alive_N // (self.grid[1] * self.grid[2])

    @property
    def place_N(self) -> Tensor:
        """The spatial position of each token, the same number in every frame."""
        return self.alive_N % (self.grid[1] * self.grid[2])


@dataclass(frozen=True)
class Merge:
    """Several tokens become one: token n goes into group_N[n] (-1: nowhere) with weight_N[n]."""

    group_N: Tensor
    weight_N: Tensor
    count: int

    @property
    def first(self) -> Tensor:
        """The first token of every group."""
        index_N = torch.arange(len(self.group_N), device=self.group_N.device)
        used = self.group_N >= 0
        out_K = torch.full((self.count,), len(self.group_N), device=self.group_N.device)
        return out_K.scatter_reduce_(0, self.group_N[used], index_N[used], "amin")

    def apply(self, x_ND: Tensor) -> Tensor:
        used = self.group_N >= 0
        out_KD = torch.zeros(self.count, *x_ND.shape[1:], dtype=torch.float32, device=x_ND.device)
        weight = self.weight_N[used].view(-1, *[1] * (x_ND.dim() - 1))
        return out_KD.index_add_(0, self.group_N[used], x_ND[used].float() * weight).to(x_ND.dtype)


Pick = Tensor | Merge


def check(pick: Pick, view: View, keep: int, exact: bool) -> Tensor:
    """The invariants that no method may break: count, range, order, nothing twice.

    Whether what the device alone can tell is so; asked once for all picks, each question being a wait for it.
    """
    device = view.alive_N.device
    if isinstance(pick, Merge):
        assert pick.count == keep and pick.group_N.shape == view.alive_N.shape, (pick.count, keep)
        return torch.ones((), dtype=torch.bool, device=device)
    n = len(view.alive_N)
    assert pick.dtype == torch.long and 0 < len(pick) <= keep and (len(pick) == keep or not exact), (len(pick), keep)
    return (pick[1:] > pick[:-1]).all() & (pick[0] >= 0) & (pick[-1] < n)


def all_in_order(checked: list[Tensor]) -> None:
    assert not checked or bool(torch.stack(checked).all()), "not an ordered selection"
