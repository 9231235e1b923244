"""Text from outside, made harmless for the page: visible text alone, and its HTML."""

from __future__ import annotations

import html
import re

# Control characters (but for line breaks), lone surrogates, and whatever turns the direction of the text around it.
_HIDDEN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def visible(text: str, most_chars: int) -> str:
    """What a reader may see of a text: nothing hidden, no escape sequence, no endless text."""
    return _HIDDEN.sub(lambda sign: ascii(sign[0])[1:-1], text[:most_chars].replace("\r\n", "\n").replace("\t", " "))


def escaped(value: object, most_chars: int = 2_000) -> str:
    """Visible text for HTML, in an attribute too."""
    text = str(value)
    return html.escape(visible(text, most_chars)) + ("…" if len(text) > most_chars else "")
