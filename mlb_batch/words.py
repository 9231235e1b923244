"""The words of a text in any script, for comparing two texts by what they say."""

from __future__ import annotations

import re
import unicodedata

_ALONE = re.compile(  # Thai to Chinese: where words are not written apart, signs are compared
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]"
)


def words(text: str) -> list[str]:
    """In small letters and without punctuation; of a text that has no word (an emoji) what stands there instead."""
    text = unicodedata.normalize("NFC", text.casefold())
    found = "".join(map(_spaced, text)).split()
    return [word for word in found if word[0].isalnum() or _ALONE.match(word)] or text.split()


def _spaced(sign: str) -> str:
    """The vowel signs of many scripts are neither letters nor digits but marks, and tell words apart as letters do."""
    if _ALONE.match(sign):
        return f" {sign} "
    return sign if sign.isalnum() or unicodedata.category(sign).startswith("M") else " "
