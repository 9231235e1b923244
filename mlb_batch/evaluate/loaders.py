"""The loaders that all public benchmarks share: rows of annotation files -> items.

A benchmark says in Columns where its rows hold what, and in Shape how a question is published to be put. A row with
options is a choice; one without is an open answer; where the benchmark's answers are whole sentences, it is judged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mlb_batch.errors import InputError
from mlb_batch.evaluate.formats import File, Row
from mlb_batch.evaluate.items import Item
from mlb_batch.source.table import as_text
from mlb_batch.vlm.choices import LETTERS


@dataclass(frozen=True)
class Shape:
    """How a question is put: lines before it, it, its options, and what is said last."""

    before: str = ""
    question: str = "{question}"
    option: str = "{letter}. {option}"
    options: str = ""  # the line above the options
    last: str = "Answer with the option's letter from the given choices directly."
    last_open: str = "Answer the question using a single word or phrase."

    def text(self, question: str, choices: Sequence[str], kind: str) -> str:
        asked = self.question.format(question=question) if choices else question
        options = [self.option.format(letter=a, option=b) for a, b in zip(LETTERS, choices, strict=False)]
        last = self.last if choices else self.last_open if kind == "open" else ""
        lines = [self.before, asked, self.options, *options, last] if choices else [asked, last]
        return "\n".join(line for line in lines if line)


Read = Callable[[Row], Any]


def columns(*names: str) -> Read:
    """The first of these columns that a row has. It may be empty: MLVU asks one question without a word."""

    def read(row: Row) -> Any:
        for name in names:
            if row.get(name) is not None:
                return row[name]
        raise KeyError(" or ".join(names))

    return read


@dataclass(frozen=True)
class Columns:
    """Where a row holds what. `answer` is a text, or the number of an option.

    A text that none of the options says (MLVU has two such rows) is an answer that nobody can give.
    """

    video: Read
    answer: Read
    question: Read = field(default=columns("question"))
    id: Read = field(default=columns("question_id"))
    options: Callable[[Row], list[str]] = field(default=lambda row: [])
    accepted: Callable[[Row], list[str]] = field(default=lambda row: [])  # answers that are as right as `answer`
    tags: Mapping[str, Read] = field(default_factory=dict)


def load(files: Sequence[File], where: Columns, shape: Shape, open_kind: str = "open") -> Iterator[Item]:
    """Items of all rows; InputError names the first row that is not in the benchmark's format."""
    for file in files:
        for number, row in enumerate(file.rows, start=1):
            try:
                yield _item(row, where, shape, open_kind)
            except (LookupError, ValueError, TypeError, AttributeError, OverflowError) as error:
                said = f"no column {error}" if isinstance(error, KeyError) else str(error)
                raise InputError(f"benchmark.annotations: {file.name}, row {number}: {said}") from None


def _item(row: Row, where: Columns, shape: Shape, open_kind: str) -> Item:
    options = where.options(row)
    if len(options) > len(LETTERS):
        raise ValueError(f"it has {len(options)} options; at most {len(LETTERS)} can be put by their letters")
    answer = where.answer(row)
    if isinstance(answer, int):
        if not 0 <= answer < len(options):
            raise ValueError(f"its answer is number {answer} of {len(options)} options")
        answer = options[answer]
    elif options:  # as the option has it: a copy may have lost a blank at one's end or at the other's
        answer = next((one for one in options if one.strip() == str(answer).strip()), answer)
    kind: Any = "choice" if options else open_kind
    return Item(
        id=as_text(where.id(row)),
        video=as_text(where.video(row)),
        kind=kind,
        prompt=as_text(shape.text(str(where.question(row)).strip(), options, kind)),
        answer=as_text(answer),
        choices=tuple(map(as_text, options)),
        accepted=tuple(map(as_text, where.accepted(row))),
        tags={name: as_text(read(row)) for name, read in where.tags.items()},
    )


def flattened(files: Sequence[File], key: str) -> tuple[File, ...]:
    """Rows that hold a list of questions become a row a question, with what they say of the video."""
    out = []
    for file in files:
        rows: list[Row] = []
        for row in file.rows:
            inner = row.get(key)
            rows += [{**row, **one} for one in inner] if isinstance(inner, list) else [row]
        out.append(replace(file, rows=tuple(rows)))
    return tuple(out)


def joined(files: Sequence[File], key: str) -> tuple[File, ...]:
    """Questions and answers that lie in two files, by what both call `key`."""
    with_key = [file for file in files if file.rows and key in file.rows[0]]
    answers = {as_text(row.get(key)): row for file in with_key if "answer" in file.rows[0] for row in file.rows}

    def with_answer(row: Row) -> Row:
        return {**answers.get(as_text(row.get(key)), {}), **row}

    questions = [file for file in with_key if "question" in file.rows[0]]
    return tuple(replace(file, rows=tuple(map(with_answer, file.rows))) for file in questions)
