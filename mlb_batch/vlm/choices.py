"""Multiple choice: how the options are put to a model, and how its answer names one."""

from __future__ import annotations

from collections.abc import Sequence

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CHOICE_INSTRUCTION = "Answer with the option's letter."


def choice_text(text: str, choices: Sequence[str]) -> str:
    """A question, its options by letter, and the word on how to answer."""
    options = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False)]
    return "\n".join([text, *options, CHOICE_INSTRUCTION])


def parse_letter(answer: str, choices: Sequence[str]) -> str:
    """The option that an answer names: by its letter, else by its text; empty where it names none."""
    words = answer.strip().lstrip("([").split(maxsplit=1)
    head = words[0].rstrip(".,:;)]").upper() if words else ""
    if len(head) == 1 and head in LETTERS[: len(choices)]:
        return choices[LETTERS.index(head)]
    named = [c for c in choices if c.lower() == answer.strip().rstrip(".").lower()]
    return named[0] if len(named) == 1 else ""
