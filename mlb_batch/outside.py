"""Text from outside, made harmless for where it goes: a terminal's line, a cell of a Markdown table, a UTF-8 file.

For a page that is page/escape.py, which escapes HTML as well.
"""

from __future__ import annotations

MOST_OF_A_CELL = 300  # characters


def printable(text: str, most_chars: int = 200) -> str:
    """Text from outside made safe for a terminal: no escape sequence, no line break, no endless line."""
    shown = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text[:most_chars])
    return shown if len(text) <= most_chars else f"{shown}..."


def as_cell(text: str) -> str:
    """What came from a model or a file, as one cell of a table: no line, no column, no markup of its own."""
    shown = "".join(sign if sign.isprintable() else " " for sign in text[:MOST_OF_A_CELL])
    harmless = shown.replace("|", "/").replace("<", "&lt;").replace("`", "'").replace("](", "]\\(")
    return harmless if len(text) <= MOST_OF_A_CELL else f"{harmless}..."


def encodable(text: str) -> bool:
    """Whether it can be written as UTF-8: JSON can hold half a surrogate pair, which can't."""
    return not any("\ud800" <= sign <= "\udfff" for sign in text)


def mended(text: str) -> str:
    """With a ? for what can't be written as UTF-8."""
    return text.encode("utf-8", "replace").decode()
