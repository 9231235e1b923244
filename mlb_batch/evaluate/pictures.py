"""What is drawn of an evaluation: quality against exact FLOPs, one picture a model, metric and kind of question."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from mlb_batch.evaluate.cells import Cell
from mlb_batch.evaluate.results import Row
from mlb_batch.evaluate.svg import Curve, Point, chart

_GROUPS = (("all", "all"), ("hangs_on", "early"), ("hangs_on", "few"))
_NAMES = {"all": "all questions", "early": "questions that hang on early frames", "few": "questions on few tokens"}


def quality_charts(
    estimates: Sequence[Row], costs: Mapping[str, Mapping[str, Any]], cells: Sequence[Cell]
) -> Iterator[tuple[str, str]]:
    """Names of files and their contents."""
    models, metrics = (dict.fromkeys(row[name] for row in estimates) for name in ("model", "metric"))
    for model, metric, (by, group) in product(models, metrics, _GROUPS):
        of_this = {
            row["cell"]: row
            for row in estimates
            if (row["model"], row["metric"], row["by"], row["group"]) == (model, metric, by, group)
        }
        curves = _curves(of_this, costs, [cell for cell in cells if cell.model == model])
        if curves:
            where = "" if group == "all" else f"-{group}"
            of_what = f": {_NAMES[group]}" if metric == "accuracy" else ""
            title = f"{model}, {metric}{of_what}"
            axis = "exact FLOPs of the language model's prefill, share of unpruned"
            yield f"{metric}-{model}{where}.svg", chart(title, axis, metric, curves, _level(of_this, cells))


def _curves(of_cell: Mapping[str, Row], costs: Mapping[str, Mapping[str, Any]], cells: Sequence[Cell]) -> list[Curve]:
    curves = []
    for method in dict.fromkeys(cell.method for cell in cells if cell.rule != "none"):
        points = [
            Point(_cost(cell, costs), row["value"], row["low"], row["high"])
            for cell in cells
            if cell.method == method and (row := of_cell.get(cell.name))
        ]
        if points:
            curves.append(Curve(method, tuple(sorted(points, key=lambda point: point.x))))
    return curves


def _cost(cell: Cell, costs: Mapping[str, Mapping[str, Any]]) -> float:
    """What really ran; where no unpruned cell stands beside it, the budget that it was given."""
    share = float(costs[cell.name]["llm_flops_share"])
    return cell.ratio if math.isnan(share) or share <= 0 else share


def _level(of_cell: Mapping[str, Row], cells: Sequence[Cell]) -> Point | None:
    row = next((of_cell[cell.name] for cell in cells if cell.rule == "none" and cell.name in of_cell), None)
    return Point(1.0, row["value"], row["low"], row["high"]) if row else None
