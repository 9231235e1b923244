"""Multiple choice: how the options are put to a model, and how its answer names one."""

from __future__ import annotations

import re
from collections.abc import Sequence

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CHOICE_INSTRUCTION = "Answer with the option's letter."
_LETTER = re.compile(  # "B.A dog" is an option that was written out, "U.S." is none
    r"(?P<open>[(\[]?)(?P<letter>[A-Za-z])(?P<mark>[.,:;)\]]*)(?=\s|$|(?<=[A-Z][.:)])[A-Za-z0-9][^.])"
)


def choice_text(text: str, choices: Sequence[str]) -> str:
    """A question, its options by letter, and the word on how to answer."""
    options = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False)]
    return "\n".join([text, *options, CHOICE_INSTRUCTION])


def parse_letter(answer: str, choices: Sequence[str]) -> str:
    """The option that an answer names: by its letter, else by its text; empty where it names none.

    "A" and "I" are words too: before other words they only count as letters with a mark behind or around them.
    """
    said = answer.strip()
    named = [c for c in choices if _bare(c) == _bare(said)]
    found = _LETTER.match(said)
    letter = found["letter"].upper() if found else ""
    if not found or letter not in LETTERS[: len(choices)]:
        return named[0] if len(named) == 1 else ""
    if found.end() < len(said):
        if len(named) == 1:
            return named[0]
        if letter in "AI" and not (found["open"] or found["mark"]):
            return ""
    return choices[LETTERS.index(letter)]


def _bare(text: str) -> str:
    return text.strip().rstrip(".").lower()
