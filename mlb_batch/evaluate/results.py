"""One cell's annotations, joined with the truth: a row a question (a row an aspect, where a judge grades several)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from mlb_batch.evaluate.cells import Cell
from mlb_batch.evaluate.items import Item
from mlb_batch.evaluate.judge import Judge, Question, Verdict
from mlb_batch.evaluate.scoring import caption_facts, right
from mlb_batch.ledger import DoneIds
from mlb_batch.ledger.parts import rows_of
from mlb_batch.storage import open_store
from mlb_batch.unresolved import unresolved

_NUMBERS = ("flops_executed", "flops_planned", "flops_vanilla", "flops_prefill", "flops_scoring", "num_prompt_tokens",
            "num_new_tokens", "num_visual_tokens", "num_kept_tokens", "frames_read", "read_s", "model_s")  # fmt: skip
_READ = ("annotation_id", "video_id", "uri", "prompt", "prompt_id", "text", "finish_reason", *_NUMBERS)
NOT_SCORED = -1.0
Row = dict[str, Any]
Said = Mapping[str, Mapping[str, Any]]  # what a cell said, by the item's id

_TEXTS, _COUNT, _REAL = pa.list_(pa.string()), pa.int64(), pa.float64()
COLUMNS: dict[str, pa.DataType] = {
    **dict.fromkeys(("benchmark", "cell", "model", "method"), pa.string()),
    "ratio": _REAL,
    **dict.fromkeys(("item", "video", "kind", "task", "hangs_on", "duration", "prompt", "expected", "said",
                     "error_class"), pa.string()),
    "answered": pa.bool_(),
    "first": pa.bool_(),  # of the rows of one answer: costs are counted here
    "own_points": pa.bool_(),  # a caption has facts instead, and the second of two twins is graded with the first
    "points": _REAL,  # 1 right, 0 wrong; -1 where nothing can say
    "score": _REAL,  # a judge's, 0 to 5; -1 without one
    **dict.fromkeys(("hits", "facts_said", "facts_true"), _COUNT),
    "invented": _TEXTS,
    "missed": _TEXTS,
    **{name: _REAL if name.endswith("_s") else _COUNT for name in _NUMBERS},
}  # fmt: skip


@dataclass(frozen=True)
class Answers:
    """What a cell said, and why it said nothing to the rest."""

    said: Said
    errors: Mapping[str, str]  # error class by item id

    def complete(self, items: Iterable[Item]) -> bool:
        return all(item.id in self.said for item in items)

    def found_since(self, items: Iterable[Item], missing: Set[str]) -> bool:
        """Whether a video is there now that was not found when it was asked about."""
        return any(self.errors.get(item.id) == "not_found" and item.video not in missing for item in items)

    def to_others(self, items: Iterable[Item], alone: bool, clips: str) -> Iterator[str]:
        """The ids of questions that were others when this was said: by their text, or not asked `alone` (or asked so);
        or about another clip, where `clips` is the folder that clips are made in. Videos of a benchmark may move.
        """
        for item in items:
            row = self.said.get(item.id)
            if row and not (
                row["prompt"] == item.prompt
                and (row["video_id"] == item.id) == alone
                and row["uri"].endswith(f"{clips}/{item.video}" if clips else "")
            ):
                yield item.id


def read_answers(output: str, fingerprint: str) -> Answers:
    store = open_store(output)
    said = {row["prompt_id"]: row for table in rows_of(store, "annotations", fingerprint, _READ)
            for row in table.to_pylist()}  # fmt: skip
    done = DoneIds(row["annotation_id"] for row in said.values())
    last, _ = unresolved(store, fingerprint, done)
    return Answers(said, {row["prompt_id"]: row["error_class"] for row in last})


def results(benchmark: str, cell: Cell, items: Sequence[Item], answers: Answers, judge: Judge | None) -> list[Row]:
    verdicts = _judged(items, answers, judge)
    same = {"benchmark": benchmark, "cell": cell.name, "model": cell.model, "method": cell.method, "ratio": cell.ratio}
    return [{**same, **row} for item in items for row in _rows(item, answers, verdicts)]


def to_table(rows: Sequence[Row]) -> pa.Table:
    schema = pa.schema([pa.field(name, kind, nullable=False) for name, kind in COLUMNS.items()])
    return pa.Table.from_pylist(list(rows), schema=schema)


def _judged(items: Sequence[Item], answers: Answers, judge: Judge | None) -> Mapping[str, Verdict] | None:
    """None without a judge. With one, what it did not grade stays without points: matching would be another measure."""
    if judge is None:
        return None
    asked = [question for item in items for aspect in _aspects(item) if (question := _question(item, aspect, answers))]
    return judge.verdicts(asked)


def _aspects(item: Item) -> tuple[str, ...]:
    """What is graded of an item; a choice and a caption need no judge."""
    if item.kind == "open":
        return ("match",)
    return tuple(item.tags["aspects"].split(",")) if item.kind == "judged" else ()


def _twin(item: Item) -> str:
    """The other form of its question; the lesser id is graded for both. Its own where there is none."""
    return item.tags.get("twin", item.id)


def _question(item: Item, aspect: str, answers: Answers) -> Question | None:
    """None where there is no answer to grade, or where its twin is graded for both."""
    twin = _twin(item)
    if item.id not in answers.said or twin not in answers.said or twin < item.id:
        return None
    texts = [answers.said[one]["text"] for one in sorted({item.id, twin})]
    return Question(item.prompt, item.answer, "\nand, asked in other words: ".join(texts), aspect)


def _rows(item: Item, answers: Answers, verdicts: Mapping[str, Verdict] | None) -> Iterator[Row]:
    aspects = _aspects(item) if item.kind == "judged" else ("",)
    for number, aspect in enumerate(aspects):
        task = aspect or item.tags.get("kind", item.kind)
        yield {**_of_item(item, answers), **_marked(item, aspect or "match", answers, verdicts), "task": task,
               "first": number == 0}  # fmt: skip


def _of_item(item: Item, answers: Answers) -> Row:
    row = answers.said.get(item.id)
    nothing = {name: 0.0 if name.endswith("_s") else 0 for name in _NUMBERS}
    return {
        "item": item.id,
        "video": item.video,
        "kind": item.kind,
        **{name: item.tags.get(name, "") for name in ("hangs_on", "duration")},
        "prompt": item.prompt,
        "expected": item.answer,
        "said": row["text"] if row else "",
        "error_class": "" if row else answers.errors.get(item.id, "not_run"),
        "answered": row is not None,
        "own_points": item.kind != "caption" and _twin(item) >= item.id,
        **({name: row[name] for name in _NUMBERS} if row else nothing),
    }


def _marked(item: Item, aspect: str, answers: Answers, verdicts: Mapping[str, Verdict] | None) -> Row:
    """Points and facts; what nobody answered is marked when it is counted, as its benchmark says."""
    marks: Row = {"points": NOT_SCORED, "score": NOT_SCORED, "hits": 0, "facts_said": 0, "facts_true": 0,
                  "invented": [], "missed": []}  # fmt: skip
    if item.id not in answers.said:
        if verdicts is not None and _aspects(item):
            marks["score"] = 0.0  # where its benchmark counts it at all
        return {**marks, "facts_true": caption_facts("", item.answer).true} if item.kind == "caption" else marks
    row = answers.said[item.id]
    said = row["text"]
    if item.kind == "caption":
        found = caption_facts(said, item.answer, cut=row["finish_reason"] == "length")
        return {**marks, "hits": found.hits, "facts_said": found.said, "facts_true": found.true,
                "invented": list(found.invented), "missed": list(found.missed)}  # fmt: skip
    if item.kind == "choice" or (item.kind == "open" and verdicts is None):
        return {**marks, "points": float(right(item, said))}
    question = _question(item, aspect, answers)
    verdict = verdicts.get(question.key) if verdicts and question else None
    return {**marks, "points": float(verdict.right), "score": verdict.score} if verdict else marks
