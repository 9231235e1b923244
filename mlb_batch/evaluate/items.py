"""What a benchmark asks: one question (or a caption) of one video, with what is known to be right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["choice", "open", "judged", "caption"]


@dataclass(frozen=True)
class Item:
    """One question.

    choice   `answer` is the option's text, `choices` are all of them
    open     `answer` is a short text that another may equal; `accepted` are others that are as right
    judged   `answer` is a free text that only a judge can compare
    caption  `answer` is the true caption, whose facts are counted
    """

    id: str  # one of its kind in the benchmark
    video: str  # a file below the benchmark's folder of videos
    kind: Kind
    prompt: str  # as it is sent; of a choice that the engine puts itself (`shaped` False) the bare question
    answer: str
    choices: tuple[str, ...] = ()
    accepted: tuple[str, ...] = ()
    shaped: bool = True
    tags: Mapping[str, str] = field(default_factory=dict)  # what results are grouped by: kind, hangs_on, duration


def amount(items: Sequence[Item]) -> str:
    """`5,000 questions and 1,250 captions`, without what there are none of."""
    captions = sum(item.kind == "caption" for item in items)
    parts = ((len(items) - captions, "questions"), (captions, "captions"))
    return " and ".join(f"{count:,} {what}" for count, what in parts if count)
