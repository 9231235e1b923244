"""Multiple choice: how the options are put to a model, and how its answer names one."""

from __future__ import annotations

import re
from collections.abc import Sequence

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CHOICE_INSTRUCTION = "Answer with the option's letter."
_LETTER = re.compile(  # "B.A dog" is an option that was written out, "U.S." is none
    r"(?P<open>[(\[]?)(?P<letter>[A-Za-z])(?P<mark>[.,:;)\]]*)(?=\s|$|(?<=[A-Z][.:)])[A-Za-z0-9][^.])"
)
WRONG = r"\s+(?:is|was)(?:n't|\s+(?:not|wrong|incorrect|false))\b"
# Behind a letter that is named: not another one beside it, nor that it is wrong.
ALONE = (
    r"(?![)\]]?\s*(?:(?:\bor\b|\band\b|[&/])\s*[(\[]?[A-Za-z]\b|,\s*[(\[]?(?:[B-HJ-Z]\b|[AI]\b(?!\s+\w)))"
    rf"|[)\].:]?{WRONG})"
)
# Behind an "A" or an "I" that is no word of a sentence.
NO_WORD = r"(?=[ \t]*(?:$|\n|[-\u2013\u2014]\s)|\s+(?:because|since|as)\b|\s+is\s+(?:the\s+)?(?:correct|right|best)\b)"
_ALONE, _NO_WORD = re.compile(ALONE), re.compile(NO_WORD)


def choice_text(text: str, choices: Sequence[str]) -> str:
    """A question, its options by letter, and the word on how to answer."""
    options = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False)]
    return "\n".join([text, *options, CHOICE_INSTRUCTION])


def parse_letter(answer: str, choices: Sequence[str]) -> str:
    """The option that an answer names: by its letter, else by its text; empty where it names none.

    "A" and "I" are words too: before other words they only count as letters with a mark behind or around them, with
    their own option behind them, or where no sentence goes on so. Where two letters are named, none is.
    """
    said = answer.strip()
    named = [c for c in choices if _bare(c) == _bare(said)]
    found = _LETTER.match(said)
    letter = found["letter"].upper() if found else ""
    if not found or letter not in LETTERS[: len(choices)]:
        return named[0] if len(named) == 1 else ""
    own, rest = choices[LETTERS.index(letter)], said[found.end() :]
    if rest:
        if len(named) == 1:
            return named[0]
        is_word = letter in "AI" and not (found["open"] or found["mark"] or _NO_WORD.match(rest))
        if _bare(rest) != _bare(own) and (is_word or not _ALONE.match(said, found.end("letter"))):
            return ""
    return own


def _bare(text: str) -> str:
    return text.strip().rstrip(".").lower()
