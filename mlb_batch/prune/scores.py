"""Pure tensor helpers that methods share: stable selection, reduction of attention, segments, whole-number shares.

Everything that ranks is fp32 and stable: of two equal scores the lower index wins, on any device and in any batch.

Shapes: N visual tokens still there, F frames, S parts that share (segments, as a rule), H heads, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def top(score_N: Tensor, keep: int) -> Tensor:
    """Indices of the `keep` largest scores, in order of index; ties go to the lower index."""
    return ranked(score_N)[:keep].sort().values


def ranked(score_N: Tensor) -> Tensor:
    """All indices, largest score first; ties go to the lower index."""
    return torch.sort(score_N.float(), descending=True, stable=True).indices


def over_heads(attention_HN: Tensor, heads: str) -> Tensor:
    """One score a token: mean or maximum over the heads."""
    return attention_HN.mean(dim=0) if heads == "mean" else attention_HN.amax(dim=0)


def spread(count: int, total: int) -> list[int]:
    """`count` of `total` indices, evenly spaced, both ends included where there are two or more."""
    if count == 1:
        return [(total - 1) // 2]
    return [round(i * (total - 1) / (count - 1)) for i in range(count)]


def segments(feature_FD: Tensor, tau: float) -> Tensor:
    """Segment of each frame: a new one starts where the cosine to the frame before falls under tau."""
    if len(feature_FD) == 1:
        return torch.zeros(1, dtype=torch.long, device=feature_FD.device)
    starts_F = torch.zeros(len(feature_FD), dtype=torch.long, device=feature_FD.device)
    starts_F[1:] = (neighbour_cosine(feature_FD) < tau).long()
    return starts_F.cumsum(0)


def neighbour_cosine(feature_FD: Tensor) -> Tensor:
    """Cosine of each frame with the one before it (one fewer than there are frames)."""
    unit_FD = torch.nn.functional.normalize(feature_FD.float(), dim=-1)
    return (unit_FD[1:] * unit_FD[:-1]).sum(-1)


def join_most_similar(segment_F: Tensor, feature_FD: Tensor, at_most: int) -> Tensor:
    """Join neighbouring segments, the most similar boundary first, until at most `at_most` are left."""
    if len(segment_F) <= at_most or (count := int(segment_F[-1]) + 1) <= at_most:
        return segment_F
    is_start = torch.zeros_like(segment_F, dtype=torch.bool)
    is_start[1:] = segment_F[1:] != segment_F[:-1]
    similarity = torch.full(segment_F.shape, -torch.inf, device=segment_F.device)
    similarity[1:] = neighbour_cosine(feature_FD)
    similarity[~is_start] = -torch.inf
    dissolved = ranked(similarity)[: count - at_most]
    is_start[dissolved] = False
    return is_start.long().cumsum(0)


def counted(label_N: Tensor, labels: int) -> Tensor:
    """How often each label stands there; unlike bincount, without a wait for the device."""
    return torch.zeros(labels, dtype=torch.long, device=label_N.device).scatter_add_(
        0, label_N, torch.ones_like(label_N)
    )


def shares(weight_S: Tensor, capacity_S: Tensor, total: int) -> Tensor:
    """`total` in whole numbers: one each, then the rest by weight (largest remainder), at most each one's capacity.

    What a full one cannot take goes to the others; one without capacity gets nothing. Weights are whole, so that no
    last bit decides a tie (which the lower index wins), and nobody waits for the device.
    """
    one_S = (capacity_S > 0).long()
    room_S, left = capacity_S - one_S, total - one_S.sum()
    full_S = _full(weight_S, room_S, left)
    taken_S = room_S.where(full_S, 0)
    left, weight_S = left - taken_S.sum(), weight_S.masked_fill(full_S, 0)
    parts_S, whole = left * weight_S, weight_S.sum().clamp(min=1)
    rest_S = (parts_S % whole).masked_fill(full_S, -1)
    part_S = parts_S // whole
    more_S = ranks(torch.sort(rest_S, descending=True, stable=True).indices) < left - part_S.sum()
    return one_S + taken_S + part_S + more_S


def _full(weight_S: Tensor, room_S: Tensor, left: Tensor) -> Tensor:
    """Which ones take all that they have room for: where room is scarcest for the weight, from there on as it goes."""
    order = torch.sort(room_S.double() / weight_S.clamp(min=1), stable=True).indices
    room, weight = room_S[order], weight_S[order]
    after_those_before = left - (room.cumsum(0) - room)
    weight_from_here = weight.flip(0).cumsum(0).flip(0)
    return torch.empty_like(order, dtype=torch.bool).scatter_(
        0, order, room * weight_from_here <= after_those_before * weight
    )


def ranks(order_N: Tensor) -> Tensor:
    """Of each index its place in an order."""
    return torch.empty_like(order_N).scatter_(0, order_N, torch.arange(len(order_N), device=order_N.device))


def best_of_each(label_N: Tensor, rank_N: Tensor, count_S: Tensor, keep: int) -> Tensor:
    """Of each label as many of the lowest ranks as it has a count, in order of index; the counts add up to `keep`.

    No two of a label have the same rank, and none is twice as many as there are, or more.
    """
    count = len(rank_N)
    order = torch.sort(label_N * (2 * count) + rank_N).indices
    sizes_S = counted(label_N, len(count_S))
    label = label_N[order]
    place = torch.arange(count, device=order.device) - (sizes_S.cumsum(0) - sizes_S)[label]
    return indices(torch.empty_like(order, dtype=torch.bool).scatter_(0, order, place < count_S[label]), keep)


def indices(chosen_N: Tensor, keep: int) -> Tensor:
    """Where it is true, which is so at `keep` places; unlike nonzero, without a wait for the device."""
    place_N = (chosen_N.cumsum(0) - 1).where(chosen_N, keep).clamp(max=keep)  # behind them all: nobody looks there
    index_N = torch.arange(len(chosen_N), device=chosen_N.device)
    return torch.full((keep + 1,), -1, device=chosen_N.device).scatter_(0, place_N, index_N)[:keep]
