"""Keys and values of sequences that generate together: a layer's lie in one pool, in which each sequence has a room.

A room is as long as the sequence can get, and lies token by token, as the packed kernel wants it: so a step writes one
row a sequence and copies nothing, and on a GPU all sequences are looked at in one call. Where some have ended and
others come, all move: into pools that are as large as they need.

Shapes: B running sequences, L layers, T places of a pool, S keys of one sequence, H query heads, h key/value heads,
d head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from mlb_batch.vlm.attention import Lengths, attend_last, attend_rooms, packs
from mlb_batch.vlm.moving import sent
from mlb_batch.vlm.sequence import Prefilled


class Rooms:
    def __init__(self, layers: int) -> None:
        self.keys = [torch.empty(0)] * layers  # per layer, T x h x d
        self.values = [torch.empty(0)] * layers
        self.starts = [[0]] * layers  # per layer: where each sequence's room begins, and where the last one ends

    def move(self, stay: Sequence[tuple[int, list[int]]], come: Sequence[Prefilled], more: Sequence[int]) -> None:
        """New pools: for those who stay, by their room and their keys in use, and for those who come behind them.

        `more`: how many tokens each of all these may still get. What lay in other rooms is gone. It goes layer by
        layer, and those who come forget what has moved: so no more than one layer is ever held twice.
        """
        for layer in range(len(self.keys)):
            moving = [self._room(layer, room, used[layer]) for room, used in stay] + [one.next_layer() for one in come]
            lengths = [len(keys_Shd) + left for (keys_Shd, _), left in zip(moving, more, strict=True)]
            starts = list(accumulate(lengths, initial=0))
            self.keys[layer] = _pool([keys_Shd for keys_Shd, _ in moving], starts)
            self.values[layer] = _pool([values_Shd for _, values_Shd in moving], starts)
            self.starts[layer] = starts

    def _room(self, layer: int, room: int, used: int) -> tuple[Tensor, Tensor]:
        start = self.starts[layer][room]
        return self.keys[layer][start : start + used], self.values[layer][start : start + used]


class Step:
    """The layout of one more token of each running sequence.

    `running`: whose rooms; `used`: by sequence and layer, the keys so far, which it keeps count of.
    """

    def __init__(self, rooms: Rooms, running: Sequence[int], used: Sequence[list[int]]) -> None:
        self._rooms, self._running, self._used = rooms, running, used
        self.packed = packs(rooms.keys[0])
        if self.packed:
            self._to_device(rooms.keys[0].device)

    def _to_device(self, device: torch.device) -> None:
        """One journey for as many steps as no sequence ends in."""
        starts = self._rooms.starts
        bounds = [[*(some[room] for room in self._running), some[self._running[-1] + 1]] for some in starts]
        used = [list(some) for some in zip(*self._used, strict=True)]
        bounds_LB = sent(torch.tensor(bounds, dtype=torch.int32), device)
        used_LB = sent(torch.tensor(used, dtype=torch.int32), device)
        rows_B = torch.arange(len(self._running) + 1, dtype=torch.int32, device=device)
        longest = [max(some[room + 1] - some[room] for room in self._running) for some in starts]
        self._lengths = [Lengths(rows_B, bounds_LB[layer], 1, most) for layer, most in enumerate(longest)]
        self._first_LB = bounds_LB[:, :-1].long()
        self._next_LB, self._seen_LB = self._first_LB + used_LB, used_LB + 1
        ends = [[some[room + 1] for room in self._running] for some in starts]
        self._last_LB = sent(torch.tensor(ends), device) - 1

    def attend(self, layer: int, q_HBd: Tensor, k_hBd: Tensor, v_hBd: Tensor, scale: float) -> Tensor:
        if self.packed:
            return self._attend_packed(layer, q_HBd, k_hBd, v_hBd, scale)
        out_HBd = torch.empty_like(q_HBd)
        keys_Thd, values_Thd = self._rooms.keys[layer], self._rooms.values[layer]
        for b, (room, used) in enumerate(zip(self._running, self._used, strict=True)):
            start = self._rooms.starts[layer][room]
            last, one = start + used[layer], slice(b, b + 1)
            keys_Thd[last], values_Thd[last] = k_hBd[:, b], v_hBd[:, b]
            keys_hSd, values_hSd = (x[start : last + 1].transpose(0, 1) for x in (keys_Thd, values_Thd))
            out_HBd[:, one] = attend_last(q_HBd[:, one], keys_hSd, values_hSd, scale)
        return out_HBd

    def ended(self) -> None:
        """Every layer has been through: each sequence has one more key."""
        for used in self._used:
            used[:] = [keys + 1 for keys in used]

    def moved_on(self) -> None:
        """The same on the device. One that has ended stays in its room, whatever it writes there."""
        if self.packed:
            self._next_LB.copy_(torch.minimum(self._next_LB + 1, self._last_LB))
            self._seen_LB.copy_(self._next_LB - self._first_LB + 1)

    def _attend_packed(self, layer: int, q_HBd: Tensor, k_hBd: Tensor, v_hBd: Tensor, scale: float) -> Tensor:
        keys_Thd, values_Thd = self._rooms.keys[layer], self._rooms.values[layer]
        keys_Thd.index_copy_(0, self._next_LB[layer], k_hBd.transpose(0, 1))
        values_Thd.index_copy_(0, self._next_LB[layer], v_hBd.transpose(0, 1))
        return attend_rooms(q_HBd, keys_Thd, values_Thd, self._lengths[layer], self._seen_LB[layer], scale)


def _pool(parts: list[Tensor], starts: list[int]) -> Tensor:
    pool_Thd = parts[0].new_empty(starts[-1], *parts[0].shape[1:])
    for x_Shd, start in zip(parts, starts[:-1], strict=True):
        pool_Thd[start : start + len(x_Shd)] = x_Shd
    return pool_Thd
