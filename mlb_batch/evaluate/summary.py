"""Results -> estimates: every cell's quality with its interval, its distance to vanilla and to random, and its cost."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mlb_batch.evaluate.cells import Cell
from mlb_batch.evaluate.intervals import Interval, Share, average, difference, proportion
from mlb_batch.evaluate.results import Row

NOTHING = float("nan")
GROUPINGS = {  # columns of the results, and what tables call questions that are grouped by them
    "hangs_on": "By what a question hangs on",
    "duration": "By the length of its video",
    "task": "By kind of question",
}
OF_ANSWERS = ("accuracy", "score")
MOST = {"accuracy": 1.0, "score": 5.0, "precision": 1.0, "recall": 1.0}


@dataclass(frozen=True)
class Metric:
    """What a row reaches and what it could, (0, 0) where it does not count."""

    name: str
    of_row: Callable[[Row], tuple[float, float]]
    is_share: bool = True

    def counts(self, row: Row) -> bool:
        """Whether it can be held against another cell's; a caption that states nothing can."""
        silent = self.name == "precision" and row["kind"] == "caption" and row["answered"]
        return silent or self.of_row(row)[1] > 0


@dataclass(frozen=True)
class Counting:
    """How a benchmark counts: what unanswered questions are worth, and what its headline averages over."""

    unanswered: str = "wrong"
    average: str = "question"


def metrics(counting: Counting) -> tuple[Metric, ...]:
    def accuracy(row: Row) -> tuple[float, float]:
        if row["kind"] not in ("choice", "open"):
            return 0, 0
        if not row["answered"]:
            return 0, float(counting.unanswered == "wrong")
        return (row["points"], 1) if row["points"] >= 0 else (0, 0)

    def score(row: Row) -> tuple[float, float]:
        counts = row["score"] >= 0 and (row["answered"] or counting.unanswered == "wrong")
        return (row["score"], 1) if counts else (0, 0)

    def recall(row: Row) -> tuple[float, float]:
        return (row["hits"], row["facts_true"]) if row["answered"] or counting.unanswered == "wrong" else (0, 0)

    return (
        Metric("accuracy", accuracy),
        Metric("score", score, is_share=False),
        Metric("precision", lambda row: (row["hits"], row["facts_said"])),
        Metric("recall", recall),
    )


def estimates(of_cell: Mapping[str, Sequence[Row]], cells: Sequence[Cell], counting: Counting) -> list[Row]:
    """One row a cell, metric and group of questions."""
    videos = sorted({row["video"] for rows in of_cell.values() for row in rows})
    number = {video: place for place, video in enumerate(videos)}
    tables = {name: _Table(rows, number, counting) for name, rows in of_cell.items()}
    return [
        row
        for cell in cells
        if cell.name in tables
        for row in _of_cell(cell, tables, rivals(cell, [c for c in cells if c.name in tables]), counting)
    ]


def rivals(cell: Cell, cells: Sequence[Cell]) -> dict[str, str]:
    """The cells that a cell is held against: the unpruned one, and random pruning at its budget."""
    of_model = [other for other in cells if other.model == cell.model and other.name != cell.name]
    none = next((other.name for other in of_model if other.rule == "none"), "")
    same = [other for other in of_model if other.rule == "random" and other.ratio == cell.ratio]
    found = {"none": none, "random": same[0].name if same else ""}
    return {name: rival for name, rival in found.items() if rival and cell.rule != name}


class _Table:
    """One cell's rows as shares by clip, for any metric and group."""

    def __init__(self, rows: Sequence[Row], number: Mapping[str, int], counting: Counting) -> None:
        self.groups: list[tuple[str, str]] = [("all", "all")]
        for by in GROUPINGS:
            self.groups += [(by, group) for group in sorted({row[by] for row in rows if row[by]}, key=_in_order)]
        self._clips: NDArray[np.int64] = np.array([number[row["video"]] for row in rows], dtype=np.int64)
        self._number = len(number)
        self._of = {by: np.array([row[by] for row in rows]) for by in GROUPINGS}
        self._worth = {
            metric.name: np.array([metric.of_row(row) for row in rows], dtype=float).reshape(-1, 2)
            for metric in metrics(counting)
        }
        self._counts = {
            metric.name: np.array([metric.counts(row) for row in rows], dtype=bool) for metric in metrics(counting)
        }

    def share(self, metric: str, by: str, group: str, beside: _Table | None = None) -> Share:
        """Beside another cell: only on questions that count in both, so that a difference is paired."""
        chosen = slice(None) if by == "all" else self._of[by] == group
        worth, clips = self._worth[metric][chosen], self._clips[chosen]
        if beside:
            worth = worth * beside._counts[metric][chosen, None]
        reached_C, of_C = (np.bincount(clips, worth[:, i], minlength=self._number).astype(float) for i in (0, 1))
        return Share(reached_C, of_C)

    def shares(self, metric: str, by: str, group: str, averaged: str, beside: _Table | None = None) -> list[Share]:
        """One; or where the headline averages over kinds, one a kind."""
        of = [(by, group)]
        if by == "all" and averaged == "kind" and metric in OF_ANSWERS:
            of = [one for one in self.groups if one[0] == "task"]
        return [share for share in (self.share(metric, *one, beside) for one in of) if not share.empty]

    def differ(self, other: _Table, metric: str, by: str, group: str) -> tuple[int, int]:
        """Questions that this cell has right and the other wrong, and the other way about, where both count."""
        chosen = slice(None) if by == "all" else self._of[by] == group
        mine, its = (table._worth[metric][chosen, 0] for table in (self, other))
        both = self._counts[metric][chosen] & other._counts[metric][chosen]
        return int((both & (mine > its)).sum()), int((both & (mine < its)).sum())


def _in_order(group: str) -> list[str | float]:
    """Numbers in it as such, however long: of durations, 60 is before 600, and 600 before 3600."""
    return [float(part) if number % 2 else part for number, part in enumerate(re.split(r"(\d+)", group))]


def _of_cell(cell: Cell, tables: Mapping[str, _Table], against: Mapping[str, str], counting: Counting) -> Iterator[Row]:
    table = tables[cell.name]
    same = {"cell": cell.name, "model": cell.model, "method": cell.method, "ratio": cell.ratio}
    for metric in metrics(counting):
        for by, group in table.groups:
            shares = table.shares(metric.name, by, group, counting.average)
            if not shares:
                continue
            whole = table.share(metric.name, by, group)
            alone = len(shares) == 1 and metric.is_share
            one = proportion(shares[0]) if alone else average(shares, MOST[metric.name])
            row: Row = {**same, "metric": metric.name, "by": by, "group": group, **vars(one),
                        "questions": int(whole.of_C.sum()), "clips": int((whole.of_C > 0).sum())}  # fmt: skip
            for name in ("none", "random"):
                row |= _against(name, against, tables, table, (metric.name, by, group), counting)
            yield row


def _against(
    name: str, against: Mapping[str, str], tables: Mapping[str, _Table], table: _Table, what: tuple[str, str, str],
    counting: Counting,
) -> Row:  # fmt: skip
    found, better, worse = Interval(NOTHING, NOTHING, NOTHING), 0, 0
    if name in against:
        rival = tables[against[name]]
        mine, theirs = (a.shares(*what, counting.average, beside=b) for a, b in ((table, rival), (rival, table)))
        if mine and theirs:
            found = difference(mine, theirs, MOST[what[0]])
            better, worse = table.differ(rival, *what)
    return {f"minus_{name}": found.value, f"minus_{name}_low": found.low, f"minus_{name}_high": found.high,
            f"better_than_{name}": better, f"worse_than_{name}": worse}  # fmt: skip


def to_table(rows: Sequence[Row]) -> pa.Table:
    return pa.Table.from_pylist(list(rows))


def costs(rows: Sequence[Row], unpruned: Sequence[Row] | None) -> dict[str, Any]:
    """What a cell's answers cost; its share of the unpruned cell's language model on the questions that both have."""
    told = [row for row in rows if row["first"] and row["answered"]]
    frames = sum(row["frames_read"] for row in told)
    executed, vanilla = (sum(row[name] for row in told) for name in ("flops_executed", "flops_vanilla"))
    missing = [row for row in rows if row["first"] and not row["answered"]]
    ungraded = [row for row in rows if row["answered"] and row["own_points"] and row["points"] < 0]
    return {
        "answered": len(told),
        "unanswered": len(missing),
        "unanswered_by_class": dict(Counter(row["error_class"] for row in missing)),
        "ungraded": len(ungraded),
        "flops_executed": executed,
        "flops_vanilla": vanilla,
        "flops_share": executed / vanilla if vanilla else NOTHING,
        "llm_flops_share": _llm_share(told, unpruned),
        "tokens_per_frame": sum(row["num_visual_tokens"] for row in told) / frames if frames else NOTHING,
        "kept_per_frame": sum(row["num_kept_tokens"] for row in told) / frames if frames else NOTHING,
        "model_s_per_answer": float(np.mean([row["model_s"] for row in told])) if told else NOTHING,
        "read_s_per_answer": float(np.mean([row["read_s"] for row in told])) if told else NOTHING,
    }


def _llm_share(told: Sequence[Row], unpruned: Sequence[Row] | None) -> float:
    whole = {row["item"]: _llm(row) for row in unpruned or () if row["first"] and row["answered"]}
    both = [row for row in told if row["item"] in whole]
    return sum(map(_llm, both)) / sum(whole[row["item"]] for row in both) if both else NOTHING


def _llm(row: Row) -> int:
    return int(row["flops_prefill"]) + int(row["flops_scoring"])
