"""Each method's selection said again, slowly, in plain Python over lists: index by index, no tensors, no sharing.

Written from the methods' descriptions. Numbers are Python floats, except where a rounded division decides which of
two equal scores comes first: there they are rounded to fp32, as "scores are fp32, the lower index first" demands.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from statistics import fmean

import numpy as np

Paid = list[list[list[float]]]  # head, query row, visual token
Groups = list[list[tuple[int, float]]]  # for each token that goes on: the tokens in it, and their weights


@dataclass(frozen=True)
class Seen:
    """What there is to choose from: the places of the tokens that are still there, and what is known of them."""

    frames: int
    per_frame: int
    alive: list[int]
    features: list[list[float]]  # one vector a frame
    paid: Paid | None = None
    null: Paid | None = None
    relevance: list[float] | None = None

    def frame(self, i: int) -> int:
        return self.alive[i] // self.per_frame

    def place(self, i: int) -> int:
        return self.alive[i] % self.per_frame


def best(scores: Sequence[float], keep: int) -> list[int]:
    """The `keep` largest, in order of index; of two equal ones the earlier."""
    return sorted(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:keep])


def one_score(paid: Paid, heads: str) -> list[float]:
    """Mean over the query rows, then mean or maximum over the heads."""
    rows = len(paid[0])
    by_head = [[sum(row[n] for row in head) / rows for n in range(len(head[0]))] for head in paid]
    merge = max if heads == "max" else fmean
    return [merge([head[n] for head in by_head]) for n in range(len(by_head[0]))]


def fastv(seen: Seen, keep: int, heads: str = "mean") -> list[int]:
    assert seen.paid
    return best(one_score(seen.paid, heads), keep)


def evenly(count: int, total: int) -> list[int]:
    """`count` of `total`, evenly spaced, both ends included; a single one is the middle."""
    if count == 1:
        return [(total - 1) // 2]
    return [round(Fraction(i * (total - 1), count - 1)) for i in range(count)]


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / (math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b)))


def segments(features: list[list[float]], tau: float) -> list[int]:
    """A new segment wherever a frame is less like the one before it than tau."""
    out = [0]
    for before, after in pairwise(features):
        out.append(out[-1] + (cosine(before, after) < tau))
    return out


def joined(segment: list[int], features: list[list[float]], at_most: int) -> list[int]:
    """The most similar neighbouring segments become one, again and again, until there are few enough."""
    border = {f: cosine(features[f - 1], features[f]) for f in range(1, len(segment)) if segment[f] != segment[f - 1]}
    while len(border) + 1 > at_most:
        del border[min(border, key=lambda f: (-border[f], f))]
    out, now = [], 0
    for f in range(len(segment)):
        now += f in border
        out.append(now)
    return out


def shares(weights: list[Fraction], capacity: list[int], total: int) -> list[int]:
    """One each first, the rest by weight: who would get more than fits is filled, until all the others fit; then the
    others in whole numbers (largest remainder)."""
    given = [1] * len(weights)
    open_ = list(range(len(weights)))
    while True:
        left, whole = total - sum(given), sum(weights[i] for i in open_)
        exact = {i: left * Fraction(weights[i]) / whole for i in open_}
        over = [i for i in open_ if exact[i] >= capacity[i] - given[i]]
        if not over:
            break
        for i in over:
            given[i] = capacity[i]
        open_ = [i for i in open_ if i not in over]
        if not open_:
            return given
    for i in open_:
        given[i] += math.floor(exact[i])
    for i in sorted(open_, key=lambda i: (math.floor(exact[i]) - exact[i], i))[: total - sum(given)]:
        given[i] += 1
    return given


# AdaTP.


@dataclass(frozen=True)
class AdaTP:
    features: str = "attention"
    debias_global: str = "segments"
    debias_local: str = "dedup"
    heads: str = "mean"
    spend: str = "exact"
    tau: float = 0.95
    boost: float = 2.0

    def pick(self, seen: Seen, keep: int) -> list[int]:
        tokens = range(len(seen.alive))
        score = self.debiased(seen)
        segment = segments(seen.features, self.tau)
        ranked = suppressed(seen, score, segment) if self.debias_local == "suppress" else score
        firsts = representatives(seen, ranked, segment)
        if self.spend == "cap":
            keep = min(keep, len(firsts))
        wanted = firsts if self.debias_local == "dedup" else set(tokens)
        order = sorted(tokens, key=lambda i: (i not in wanted, -ranked[i], i))
        if self.debias_global in ("none", "position"):
            return sorted(order[:keep])
        segment = without_empty(seen, joined(segment, seen.features, keep))
        members = [[i for i in order if segment[seen.frame(i)] == s] for s in range(max(segment) + 1)]
        counts = shares(self.weights(seen, segment, score), [len(m) for m in members], keep)
        return sorted(i for m, n in zip(members, counts, strict=True) for i in m[:n])

    def debiased(self, seen: Seen) -> list[float]:
        """Attention, and where a bias is corrected by attention: divided by what the place is paid without content."""
        assert seen.paid
        score = one_score(seen.paid, self.heads)
        by_attention = self.features == "attention" and self.debias_global in ("segments", "both")
        if not by_attention and self.debias_global not in ("position", "both"):
            return score
        assert seen.null
        empty = one_score(seen.null, self.heads)
        return [float(np.float32(s) / (np.float32(e) + np.float32(1e-12))) for s, e in zip(score, empty, strict=True)]

    def weights(self, seen: Seen, segment: list[int], score: list[float]) -> list[Fraction]:
        """Frames of a segment, twice as many where it means more to the text than the average segment."""
        by_frame = self.relevance(seen, score)
        of = [[by_frame[f] for f in range(seen.frames) if segment[f] == s] for s in range(max(segment) + 1)]
        mean = fmean(fmean(values) for values in of)
        return [len(values) * Fraction(str(self.boost if fmean(values) > mean else 1.0)) for values in of]

    def relevance(self, seen: Seen, score: list[float]) -> list[float]:
        if self.features == "paired":
            assert seen.relevance
            return seen.relevance
        of: list[list[float]] = [[] for _ in range(seen.frames)]
        for i, s in enumerate(score):
            of[seen.frame(i)].append(s)
        return [fmean(values) if values else 0.0 for values in of]


def representatives(seen: Seen, score: list[float], segment: list[int]) -> set[int]:
    """Of each spatial position in each segment the token with the largest score, the earliest of equals."""
    found: dict[tuple[int, int], int] = {}
    for i in range(len(seen.alive)):
        key = (segment[seen.frame(i)], seen.place(i))
        if key not in found or score[i] > score[found[key]]:
            found[key] = i
    return set(found.values())


def suppressed(seen: Seen, score: list[float], segment: list[int]) -> list[float]:
    """s becomes s x s / (s + what the frames before and behind have there), inside one segment."""
    at = {(seen.frame(i), seen.place(i)): score[i] for i in range(len(seen.alive))}
    out = []
    for i, s in enumerate(score):
        f, p = seen.frame(i), seen.place(i)
        around = sum(at.get((g, p), 0.0) for g in (f - 1, f + 1) if 0 <= g < seen.frames and segment[g] == segment[f])
        out.append(s * s / (s + around + 1e-12))
    return out


def without_empty(seen: Seen, segment: list[int]) -> list[int]:
    """A segment of which nothing is left joins the one before it (at the start: the first that has something)."""
    living = {segment[seen.frame(i)] for i in range(len(seen.alive))}
    out, now, begun = [], 0, False
    for f, s in enumerate(segment):
        if s in living and (f == 0 or s != segment[f - 1]):
            now, begun = (now + 1, True) if begun else (0, True)
        out.append(now)
    return out


# The query-agnostic families.


def density(seen: Seen, tokens: list[list[float]], keep: int, tau: float, neighbours: int) -> list[int]:
    """Segments share by their size; in one, the tokens that are the dense centres of their frames."""
    score = [s for f in range(seen.frames) for s in peaks(tokens[f * seen.per_frame :][: seen.per_frame], neighbours)]
    segment = joined(segments(seen.features, tau), seen.features, keep)
    members = [[i for i in range(len(score)) if segment[seen.frame(i)] == s] for s in range(max(segment) + 1)]
    counts = shares([Fraction(len(m)) for m in members], [len(m) for m in members], keep)
    out = []
    for m, n in zip(members, counts, strict=True):
        out += sorted(m, key=lambda i: (-score[i], i))[:n]
    return sorted(out)


def peaks(tokens: list[list[float]], neighbours: int) -> list[float]:
    """exp(-mean distance to the nearest, itself included) x distance to the nearest denser one."""
    n, apart, dense = len(tokens), distances(tokens), densities(tokens, neighbours)
    order = sorted(range(n), key=lambda i: (-dense[i], i))
    out = [0.0] * n
    for rank, i in enumerate(order):
        out[i] = dense[i] * (min(apart[i][j] for j in order[:rank]) if rank else max(apart[i]))
    return out


def distances(tokens: list[list[float]]) -> list[list[float]]:
    return [[max(0.0, 1 - cosine(a, b)) for b in tokens] for a in tokens]


def densities(tokens: list[list[float]], neighbours: int) -> list[float]:
    return [math.exp(-fmean(sorted(row)[: min(neighbours + 1, len(tokens))])) for row in distances(tokens)]


def unique(seen: Seen, tokens: list[list[float]], keep: int) -> list[int]:
    """How far a token is from the clip's mean and from its frame's; frames share by how far they are from the first."""
    per = seen.per_frame
    of_clip, score = unusual(tokens, per)
    if keep < seen.frames:
        return best(score, keep)
    frame = [fmean(of_clip[f * per :][:per]) for f in range(seen.frames)]
    spread = max(1e-6, math.sqrt(fmean((x - fmean(frame)) ** 2 for x in frame)))
    counts = shares([Fraction(math.exp((x - max(frame)) / spread)) for x in frame], [per] * seen.frames, keep)
    out = []
    for f, n in enumerate(counts):
        out += [f * per + i for i in best(score[f * per :][:per], n)]
    return out


def unusual(tokens: list[list[float]], per: int) -> tuple[list[float], list[float]]:
    """How far each token is from the clip's mean; and that, together with how far it is from its frame's."""
    unit = [[x / math.sqrt(sum(y * y for y in t)) for x in t] for t in tokens]
    of_clip = [1 - cosine(t, mean(unit)) for t in unit]
    of_frame = [1 - cosine(t, mean(unit[i // per * per :][:per])) for i, t in enumerate(unit)]
    return of_clip, [a + b for a, b in zip(of_clip, of_frame, strict=True)]


def mean(vectors: list[list[float]]) -> list[float]:
    return [fmean(column) for column in zip(*vectors, strict=True)]


# What merges, and what is chosen in cells.


def pooled(frames: int, rows: int, cols: int, small: tuple[int, int]) -> Groups:
    """Every frame on a smaller grid, each cell the mean of what falls into it."""
    out: Groups = []
    for f in range(frames):
        for r in range(small[0]):
            for c in range(small[1]):
                inside = [
                    f * rows * cols + y * cols + x
                    for y in range(rows)
                    for x in range(cols)
                    if y * small[0] // rows == r and x * small[1] // cols == c
                ]
                out.append([(i, 1 / len(inside)) for i in inside])
    return out


def gridded(frames: int, rows: int, cols: int, score: list[float], cell: tuple[int, int], tail: int,
            pool: str) -> Groups:  # fmt: skip
    """Cells inside each frame, without the segment's last tokens, which follow one by one."""
    body = max(0, frames * rows * cols - tail)
    cells: dict[tuple[int, int, int], list[int]] = {}
    for i in range(body):
        f, r, c = i // (rows * cols), i // cols % rows, i % cols
        cells.setdefault((f, r // cell[0], c // cell[1]), []).append(i)
    last: Groups = [[(i, 1.0)] for i in range(body, frames * rows * cols)]
    inside = [cells[key] for key in sorted(cells)]
    if pool == "argmax":
        return [[(i, 1.0)] for i in sorted(max(m, key=lambda i: (score[i], -i)) for m in inside)] + last
    out: Groups = []
    for m in inside:
        total = sum(score[i] for i in m)
        even = pool == "mean" or total <= 0
        out.append([(i, 1 / len(m) if even else score[i] / total) for i in m])
    return out + last
