"""How far two runs over the same videos agree, answer by answer.

A question's answers agree or they don't: the same letter, or the same words. Captions agree by the share of their words
that both have (F1, each word as often as it is said, the commonest function words left out), which is what can be said
of free text without a judge: two captions that say the same differently score lower than they should, pruned or not.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from mlb_batch.ledger.parts import rows_of
from mlb_batch.storage import open_store
from mlb_batch.words import words

COLUMNS = ("video_id", "clip_start_s", "clip_end_s", "prompt_id", "video_version", "kind", "prompt", "text", "choice")
MOST_EXAMPLES = 10
_FUNCTION_WORDS = {
    "a", "an", "the", "and", "or", "of", "in", "on", "at", "to", "from", "by", "with", "for",
    "is", "are", "was", "were", "be", "it", "its", "this", "that",
}  # fmt: skip

Key = tuple[str, float, float, str, str]  # a clip, a prompt and a version: what two fingerprints have in common
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Pair:
    """What two runs said to the same."""

    one: Row
    other: Row

    @property
    def agreement(self) -> float:
        if self.one["kind"] == "choice" and (self.one["choice"] or self.other["choice"]):
            return float(self.one["choice"] == self.other["choice"])
        mine, theirs = words(self.one["text"]), words(self.other["text"])
        if self.one["kind"] != "caption":
            return float(mine == theirs)
        return _overlap(_telling(mine), _telling(theirs))


def _telling(every: list[str]) -> Counter[str]:
    """Without the function words, where there are others."""
    return Counter([word for word in every if word not in _FUNCTION_WORDS] or every)


def _overlap(one: Counter[str], other: Counter[str]) -> float:
    return 2 * (one & other).total() / (one.total() + other.total()) if one or other else 1.0


def answers(output: str, fingerprint: str, among: Container[Key] | None = None) -> dict[Key, Row]:
    """All, or those `among`: of a month of rows, a canary compares a share."""
    found: dict[Key, Row] = {}
    for table in rows_of(open_store(output), "annotations", fingerprint, COLUMNS):
        for row in table.to_pylist():
            key = (row["video_id"], row["clip_start_s"], row["clip_end_s"], row["prompt_id"], row["video_version"])
            if among is None or key in among:
                found[key] = row
    return found


def pairs(one: Mapping[Key, Row], other: Mapping[Key, Row]) -> list[Pair]:
    return [Pair(one[key], other[key]) for key in sorted(one.keys() & other.keys())]


def agreement(some: Iterable[Pair]) -> dict[str, Any]:
    """Means, over all and by kind of prompt, and the pairs that are furthest apart."""
    some = list(some)
    by_kind: defaultdict[str, list[float]] = defaultdict(list)
    for pair in some:
        by_kind[pair.one["kind"]].append(pair.agreement)
    apart = sorted((pair for pair in some if pair.agreement < 1), key=lambda pair: pair.agreement)
    return {
        "rows": len(some),
        "agreement": fmean(pair.agreement for pair in some) if some else None,
        "by_kind": {kind: fmean(values) for kind, values in sorted(by_kind.items())},
        "furthest_apart": [
            {"video_id": p.one["video_id"], "prompt": p.one["prompt"], "one": said(p.one), "other": said(p.other)}
            for p in apart[:MOST_EXAMPLES]
        ],
    }


def said(row: Row) -> str:
    return str(row["choice"] or row["text"])
