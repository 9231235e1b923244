"""The evaluation as Markdown: what was compared, what came out, what was not answered, and how to read the rest."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from mlb_batch.evaluate.cells import Cell
from mlb_batch.evaluate.results import Row
from mlb_batch.evaluate.spec import EvalSpec
from mlb_batch.evaluate.summary import GROUPINGS, OF_ANSWERS
from mlb_batch.outside import as_cell

MOST_EXAMPLES = 8
_HEADLINE = {"accuracy": "accuracy", "score": "judge's score (0 to 5)", "precision": "facts that are so (precision)",
             "recall": "facts that were told (recall)"}  # fmt: skip

_QUALITY = ("model", "method", "budget", "FLOPs", "value", "less unpruned", "less random",
            "right where random is wrong, wrong where right")  # fmt: skip
_COST = ("cell", "FLOPs of the prefill", "all FLOPs", "tokens a frame", "left behind the last cut", "model s an answer",
         "reading s", "captioner's peak memory", "answered", "not answered")  # fmt: skip


@dataclass(kw_only=True)
class Evaluation:
    """All that was found, for the tables."""

    spec: EvalSpec
    title: str
    note: str
    asked: str
    clips: int
    cells: Sequence[Cell]
    estimates: Sequence[Row]
    costs: Mapping[str, Mapping[str, Any]]
    refused: Mapping[str, str]  # why a cell could not be run
    facts: Mapping[str, tuple[Counter[str], Counter[str]]]  # of captions, by cell: invented and missed
    average: str = "question"  # what accuracy and scores are the mean over, see Counting
    pictures: Sequence[str] = ()
    bias: Sequence[str] = ()
    judges: Sequence[str] = ()


def markdown(found: Evaluation) -> str:
    return "\n".join([*_head(found), *_metrics(found), *_refused(found), *_pictures(found), *_cost(found),
                      *_groups(found), *_captions(found), *_bias(found), *_reading()]) + "\n"  # fmt: skip


def _head(found: Evaluation) -> Iterator[str]:
    spec = found.spec
    note = f" ({found.note})" if found.note else ""
    yield f"# {spec.name}: {found.title}{note}"
    yield ""
    yield f"{found.asked} on {found.clips:,} clips; models {_list(m.id for m in spec.models)}."
    alone = "each question alone on its clip" if spec.asked == "alone" else "the questions of a clip together"
    yield f"Asked: {alone}. Budgets are exact FLOPs, scope {spec.scope}, of the unpruned model."
    yield (
        "Intervals are 95 %, and know that the questions of a clip are not independent "
        "(`mlb_batch/evaluate/intervals.py` says how). Differences are paired, in points."
    )
    if found.judges:
        yield f"Open answers were graded by {as_cell(_list(found.judges))}."
    yield ""


def _metrics(found: Evaluation) -> Iterator[str]:
    by_metric = {metric: [row for row in found.estimates if (row["metric"], row["by"]) == (metric, "all")]
                 for metric in _HEADLINE}  # fmt: skip
    for metric, rows in by_metric.items():
        if not rows:
            continue
        averaged = ", the mean over kinds" if found.average == "kind" and metric in OF_ANSWERS else ""
        yield f"## {_HEADLINE[metric].capitalize()}{averaged}"
        yield ""
        yield from _header(_QUALITY)
        for row in rows:
            share = found.costs[row["cell"]]["llm_flops_share"]
            against = f"+{row['better_than_random']:,} −{row['worse_than_random']:,}"
            yield _line(
                row["model"], row["method"], _percent(row["ratio"]), _percent(share), _interval(row, metric),
                _difference(row, "none", metric), _difference(row, "random", metric),
                against if metric == "accuracy" and not math.isnan(row["minus_random"]) else "",
            )  # fmt: skip
        yield ""


def _cost(found: Evaluation) -> Iterator[str]:
    yield "## Cost"
    yield ""
    yield "FLOPs are shares: the prefill's of the unpruned cell's on the same questions, all of them (vision, a paired"
    yield "model, generation) of what the plan prices an unpruned answer at. Memory is the host's."
    yield ""
    yield from _header(_COST)
    for cell in found.cells:
        cost = found.costs.get(cell.name)
        if cost is None:
            continue
        why = ", ".join(f"{name} {count:,}" for name, count in cost["unanswered_by_class"].items())
        memory = f"{cost['peak_memory_mb']:,.0f} MB" if cost["peak_memory_mb"] else "not known"
        yield _line(
            cell.name, _percent(cost["llm_flops_share"]), _percent(cost["flops_share"]),
            _number(cost["tokens_per_frame"], 1), _number(cost["kept_per_frame"], 2),
            _number(cost["model_s_per_answer"], 4), _number(cost["read_s_per_answer"], 4), memory,
            f"{cost['answered']:,}",
            f"{cost['unanswered']:,}" + (f" ({why})" if why else ""),
        )  # fmt: skip
    yield ""
    if any(cost["ungraded"] for cost in found.costs.values()):
        yield "Answers that no judge graded are in no score: " + ", ".join(
            f"{name} {cost['ungraded']:,}" for name, cost in found.costs.items() if cost["ungraded"]
        )
        yield ""


def _groups(found: Evaluation) -> Iterator[str]:
    """One table a measure, model, budget and grouping: groups down, methods across."""
    for (by, title), metric in product(GROUPINGS.items(), OF_ANSWERS):
        rows = [row for row in found.estimates if (row["by"], row["metric"]) == (by, metric)]
        measure = "" if metric == "accuracy" else f", {_HEADLINE[metric]}"
        for model in dict.fromkeys(row["model"] for row in rows):
            for ratio in sorted({row["ratio"] for row in rows if row["ratio"] < 1}, reverse=True) or [1.0]:
                some = [row for row in rows if row["model"] == model and row["ratio"] in (ratio, 1.0)]
                yield f"## {title}: {model}, budget {_percent(ratio)}{measure}"
                yield ""
                yield from _across(some)
                yield ""


def _across(rows: Sequence[Row]) -> Iterator[str]:
    methods = list(dict.fromkeys(row["method"] for row in rows))
    yield from _header(("", "questions", *methods))
    for group in dict.fromkeys(row["group"] for row in rows):
        of_group = {row["method"]: row for row in rows if row["group"] == group}
        told = (_interval(of_group[m], of_group[m]["metric"]) if m in of_group else "" for m in methods)
        yield _line(group, f"{max(row['questions'] for row in of_group.values()):,}", *told)


def _captions(found: Evaluation) -> Iterator[str]:
    if not any(invented or missed for invented, missed in found.facts.values()):
        return
    yield "## What captions invented and missed"
    yield ""
    yield from _header(("cell", "most often invented", "most often missed"))
    for name, (invented, missed) in found.facts.items():
        told = (_list(f"{as_cell(fact)} ({n})" for fact, n in some.most_common(MOST_EXAMPLES))
                for some in (invented, missed))  # fmt: skip
        yield _of_cells([as_cell(name), *told])
    yield ""


def _refused(found: Evaluation) -> Iterator[str]:
    if found.refused:
        yield "## Not run"
        yield ""
        yield from (f"- `{name}`: {as_cell(why)}" for name, why in found.refused.items())
        yield ""


def _bias(found: Evaluation) -> Iterator[str]:
    if found.bias:
        yield "## Where text looks"
        yield ""
        yield "The last token's attention to visual tokens, unpruned, mean over heads and clips, layer by layer."
        yield "Even attention gives a quarter of the frames a quarter, and the largest place 1.00."
        yield ""
        yield from found.bias
        yield ""


def _pictures(found: Evaluation) -> Iterator[str]:
    if found.pictures:
        yield "## Pictures"
        yield ""
        yield from (f"![{name}]({name})" for name in found.pictures)
        yield ""


def _reading() -> Iterator[str]:
    yield "## Files"
    yield ""
    yield "- `results.parquet`: a row a question and cell: what was said, what was expected, points, facts, cost"
    yield "- `summary.parquet`, `summary.json`: the estimates with their intervals"
    yield "- `cells/<cell>/`: each cell's job: its annotations, errors, plan and runs; with `job.prune.selections` set,"
    yield "  `mlb-batch report OUTPUT/cells/<cell> --html FILE` shows what was kept over the frames"


def _interval(row: Row, metric: str) -> str:
    if metric == "score":
        return f"{row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
    return f"{100 * row['value']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"


def _difference(row: Row, name: str, metric: str) -> str:
    value, low, high = (row[f"minus_{name}{end}"] for end in ("", "_low", "_high"))
    if math.isnan(value):
        return ""
    scale = 1 if metric == "score" else 100
    return f"{scale * value:+.2f} [{scale * low:+.2f}, {scale * high:+.2f}]"


def _number(value: float, digits: int) -> str:
    """Nothing where nothing was answered that it could be of."""
    return "" if math.isnan(value) else f"{value:.{digits}f}"


def _percent(share: float) -> str:
    return "" if math.isnan(share) else f"{100 * share:.4g} %"


def _header(names: Sequence[str]) -> Iterator[str]:
    yield _line(*names)
    yield "|" + "---|" * len(names)


def _line(*cells: str) -> str:
    return _of_cells(map(as_cell, cells))


def _of_cells(cells: Iterable[str]) -> str:
    """Of what is harmless already, and whole: a list of facts is not cut in the middle."""
    return "| " + " | ".join(cells) + " |"


def _list(names: Any) -> str:
    return ", ".join(str(name) for name in names)
