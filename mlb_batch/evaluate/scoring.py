"""Whether an answer is right: the letter of a choice, an open answer by match, a caption by its facts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mlb_batch.evaluate.items import Item
from mlb_batch.vlm.choices import ALONE, LETTERS, NO_WORD, WRONG, parse_letter
from mlb_batch.words import words

_LEAD = re.compile(
    r"^(?:the\s+)?(?:best\s+|correct\s+|final\s+)?(?:answer|option|choice)\b(?:\s+is)?\s*[:\-]?\s*", re.I
)
_DECLARED = re.compile(  # "A" and "I" are words too, so behind them the sentence has to end, or can't go on so
    r"\b(?i:answer|option|choice|letter)\s*(?i:is\b|:)[\s:]*(?i:option\s+)?[(\[\"'`<]*"
    rf"([B-HJ-Z]\b|[AI](?:(?=[.,:;)\]\"'`>])|{NO_WORD})){ALONE}"
)
_BRACKETED = re.compile(rf"(?<!\bnot )(?<!\bnot even )\(([A-Z])\)(?!{WRONG})")
_MARKED = re.compile(r"\\boxed\{(?:\\text\{)?([^{}]*)\}|<answer>([^<]*)", re.I)
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_MOST_DIGITS = 20  # with noughts before it
_ARTICLES = {"a", "an", "the"}
_CLOSING = re.compile("[.!?]")


@dataclass(frozen=True)
class CaptionFacts:
    """A caption's facts against the truth's, each counted as often as it was said."""

    hits: int
    said: int
    true: int
    invented: tuple[str, ...]
    missed: tuple[str, ...]


def right(item: Item, said: str) -> bool:
    """Of a choice or an open answer."""
    if item.kind == "choice":
        number = named(said, item.choices)
        return number is not None and item.choices[number] == item.answer
    return any(matches(said, answer) for answer in (item.answer, *item.accepted))


def named(said: str, choices: Sequence[str]) -> int | None:
    """The number of the option that an answer names first; None where it names none."""
    # Options that are empty or say the same can only be named by their letters.
    apart = [one if one and choices.count(one) == 1 else f"{one}\0{number}" for number, one in enumerate(choices)]
    said = _marked(said)
    for told in _ever_shorter(said):
        if found := parse_letter(told, apart):
            return apart.index(found)
    plain = said.replace("**", "")
    for pattern in (_DECLARED, _BRACKETED):
        letters = set(pattern.findall(plain)) & set(LETTERS[: len(choices)])
        if letters:
            return LETTERS.index(letters.pop()) if len(letters) == 1 else None
    return None


def _marked(said: str) -> str:
    """What is boxed or stands in a tag as the answer, where it is one thing; else all that was said."""
    marked = {boxed or tagged for boxed, tagged in _MARKED.findall(said)}
    return marked.pop() if len(marked) == 1 else said


def _ever_shorter(said: str) -> Iterator[str]:
    """Without one lead after the other: "The answer is option B". An option may begin so itself: "answer the phone"."""
    yield said
    said, led = said.replace("**", "").strip(" \n\t\"'`<>$"), 1
    while led:
        yield said
        said, led = _LEAD.subn("", said)


def matches(said: str, answer: str) -> bool:
    """Equal but for case, marks, articles and how numbers are written; yes and no may be explained."""
    one, other = normalised(said), normalised(answer)
    return (one == other != "") or (other in ("yes", "no") and one.split(" ")[0] == other)


def normalised(text: str) -> str:
    every = words(text)
    telling = [word for word in every if word not in _ARTICLES] or every  # "A" alone is a letter
    return " ".join(_in_letters(word) for word in telling)


def _in_letters(word: str) -> str:
    """A small number; what has more digits is none, and beyond some thousands Python reads it no more."""
    small = word.isdecimal() and len(word) <= _MOST_DIGITS and int(word) < len(_NUMBERS)
    return _NUMBERS[int(word)] if small else word


def caption_facts(said: str, truth: str, cut: bool = False) -> CaptionFacts:
    """`cut`: it was ended by its length, in the middle of a sentence, which states nothing."""
    told, known = Counter(facts(said, cut)), Counter(facts(truth))
    return CaptionFacts(
        hits=(told & known).total(),
        said=told.total(),
        true=known.total(),
        invented=tuple((told - known).elements()),
        missed=tuple((known - told).elements()),
    )


def facts(text: str, cut: bool = False) -> tuple[str, ...]:
    """A caption's statements, one a sentence, the same whatever their case, their blanks and their closing marks."""
    sentences = _CLOSING.split(text.lower())
    told = (" ".join(sentence.split()) for sentence in (sentences[:-1] if cut else sentences))
    return tuple(filter(None, told))
