"""The prompts of one row: the job's own texts with the row's values in them, and the questions that the row brings.

A question column holds a text, a list of texts, or a list of {id, question, choices}; or JSON text of one of these.
Its prompts' ids: an entry's own id; the job's prompt id for a single text; for a text in a list, the prompt id, a dot
and eight digits of the text's hash, so that a list may grow or change its order without renaming what is done. The same
text twice in a list is one question. A null, an empty text and an empty list are no questions; a null or an empty text
in a list is one that can't be asked; choices that are null or empty are the job's. A question is data: no {name} is
replaced in it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from mlb_batch.outside import encodable, mended
from mlb_batch.source.model import Prompt
from mlb_batch.source.table import Row, whole
from mlb_batch.spec_parts import MOST_CHOICES, PromptSpec
from mlb_batch.spec_text import fill_template, template_names

MOST_CHARS = 16_000
USED_TWICE = "is used for two questions"
_ENTRY_KEYS = {"id", "question", "choices"}
_LIKE_JSON = re.compile(r"""\s*(\[\s*["'{]|\{\s*["'])""")


@dataclass(frozen=True)
class BadPrompt:
    """A prompt that can't be asked of this row, and why."""

    prompt: Prompt
    message: str


class _Bad(Exception):
    pass


Asked = Callable[[Row], Iterator[Prompt | BadPrompt]]


def asked_of_rows(specs: Sequence[PromptSpec]) -> Callable[[Row], tuple[tuple[Prompt, ...], tuple[BadPrompt, ...]]]:
    """A function that gives a row's prompts, good ones and bad ones."""
    parts = [_from_column(spec) if spec.column is not None else _from_text(spec) for spec in specs]
    if all(spec.text is not None and not template_names(spec.text) for spec in specs):
        same = tuple(prompt for part in parts for prompt in part({}) if isinstance(prompt, Prompt))
        return lambda row: (same, ())

    def asked(row: Row) -> tuple[tuple[Prompt, ...], tuple[BadPrompt, ...]]:
        good: dict[str, Prompt] = {}
        bad: dict[Prompt, BadPrompt] = {}  # each once: one question of a video is one row, whatever is wrong with it
        for part in parts:
            for one in part(row):
                if isinstance(one, BadPrompt):
                    bad.setdefault(one.prompt, one)
                elif good.setdefault(one.id, one) != one:
                    bad.setdefault(one, BadPrompt(one, f"the prompt id {one.id!r} {USED_TWICE}"))
        return tuple(good.values()), tuple(one for prompt, one in bad.items() if good.get(prompt.id) != prompt)

    return asked


def _from_text(spec: PromptSpec) -> Asked:
    assert spec.text is not None
    names, template = template_names(spec.text), spec.text

    def asked(row: Row) -> Iterator[Prompt | BadPrompt]:
        try:
            text = _capped(fill_template(template, {name: _value(row, name) for name in names}))
        except _Bad as error:
            yield BadPrompt(Prompt(spec.id, spec.kind, template, spec.choices), str(error))
        else:
            yield Prompt(spec.id, spec.kind, text, spec.choices)

    return asked


def _value(row: Row, name: str) -> str:
    value = row[name]
    if value is None:
        raise _Bad(f"{{{name}}} is null in this row")

    def written(plain: object) -> str:
        if isinstance(plain, bytes):
            raise _Bad(f"{{{name}}} holds bytes, not text; cast the column to text")
        return str(whole(plain))

    if not isinstance(value, list | dict):
        return written(value)
    text = json.dumps(value, ensure_ascii=False, default=written)
    return json.dumps(json.loads(text, parse_float=lambda digits: whole(float(digits))), ensure_ascii=False)


def _from_column(spec: PromptSpec) -> Asked:
    assert spec.column is not None
    column = spec.column

    def asked(row: Row) -> Iterator[Prompt | BadPrompt]:
        cell = _parsed(row[column])
        if isinstance(cell, list):
            for entry in cell:
                yield _one(spec, entry, in_list=True)
        elif cell is not None and cell != "":
            yield _one(spec, cell, in_list=False)

    return asked


def _parsed(cell: object) -> object:
    """A cell, with JSON text of a list or an object opened."""
    if isinstance(cell, str) and cell.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(cell)
        except (ValueError, RecursionError):
            return cell  # a question that begins with a bracket
    return cell


def _one(spec: PromptSpec, entry: object, *, in_list: bool) -> Prompt | BadPrompt:
    text = entry.get("question") if isinstance(entry, dict) else entry
    given = entry.get("id") if isinstance(entry, dict) else None
    if given is not None:
        prompt_id = str(whole(given))
    elif in_list:
        prompt_id = f"{spec.id}.{hashlib.blake2b(mended(str(text)).encode(), digest_size=4).hexdigest()}"
    else:
        prompt_id = spec.id
    try:
        if not in_list and isinstance(entry, str) and _LIKE_JSON.match(entry):  # as Python prints a list, say
            raise _Bad(f"{spec.column}: it looks like a list or an object, but is no JSON: write double quotes")
        return _checked(spec, entry, prompt_id, text)
    except _Bad as error:
        return BadPrompt(Prompt(mended(prompt_id)[:200], spec.kind, mended(str(text))[:MOST_CHARS]), str(error))


def _checked(spec: PromptSpec, entry: object, prompt_id: str, text: object) -> Prompt:
    if not isinstance(text, str) or not text.strip():
        raise _Bad(f"{spec.column}: an entry is a text, or {{id, question, choices}} with a question")
    if not 1 <= len(prompt_id) <= 200:
        raise _Bad(f"{spec.column}: an id has 1 to 200 characters")
    own: object = None
    if isinstance(entry, dict):
        unknown = sorted(str(key) for key in entry.keys() - _ENTRY_KEYS)
        if unknown:
            raise _Bad(f"{spec.column}: unknown key {unknown[0]!r} in a question; known: id, question, choices")
        own = entry.get("choices")
    choices = spec.choices if own is None or own == [] else _choices(spec, own)
    kind = "choice" if choices else spec.kind
    if kind == "choice" and not choices:
        raise _Bad(f"{spec.column}: kind choice, but neither the question nor the job names choices")
    return Prompt(_capped(prompt_id), kind, _capped(text), choices)


def _choices(spec: PromptSpec, own: object) -> tuple[str, ...]:
    if not isinstance(own, list) or not all(isinstance(one, str) and one for one in own):
        raise _Bad(f"{spec.column}: choices is a list of texts")
    if not 2 <= len(set(own)) == len(own) <= MOST_CHOICES:
        raise _Bad(f"{spec.column}: choices are 2 to {MOST_CHOICES}, all different")
    return tuple(map(_capped, own))


def _capped(text: str) -> str:
    if len(text) > MOST_CHARS:
        raise _Bad(f"a prompt of {len(text):,} characters; at most {MOST_CHARS:,} are taken")
    if not encodable(text):
        raise _Bad("half a surrogate pair: not a text that can be written as UTF-8")
    return text
