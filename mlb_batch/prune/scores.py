"""Pure tensor helpers that methods share: stable selection, reduction of attention, segments, whole-number shares.

Everything that ranks is fp32 and stable: of two equal scores the lower index wins, on any device and in any batch.
"""

from __future__ import annotations

from fractions import Fraction

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
    count = int(segment_F[-1]) + 1
    if count <= at_most:
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


def shares(weights: list[float], capacity: list[int], total: int) -> list[int]:
    """`total` in whole numbers: one each, then the rest by weight (largest remainder), at most each one's capacity.

    What a full one cannot take is shared out again among the others.
    """
    assert len(weights) <= total <= sum(capacity), (len(weights), total, sum(capacity))
    given = [1] * len(weights)
    while (left := total - sum(given)) > 0:
        open_ = [i for i in range(len(weights)) if given[i] < capacity[i]]
        for i, extra in zip(open_, largest_remainder([weights[i] for i in open_], left), strict=True):
            given[i] = min(capacity[i], given[i] + extra)
    return given


def largest_remainder(weights: list[float], total: int) -> list[int]:
    """`total` split in proportion to the weights, in whole numbers; ties go to the lower index.

    In exact fractions: rounded ones would let the last bit decide a tie.
    """
    parts = [Fraction(w) for w in weights]
    whole = sum(parts)
    exact = [total * part / whole for part in parts]
    out = [int(x) for x in exact]
    order = sorted(range(len(weights)), key=lambda i: (out[i] - exact[i], i))
    for i in order[: total - sum(out)]:
        out[i] += 1
    return out
