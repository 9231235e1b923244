"""Prompts as tokens: the checkpoint's own chat template, cut at the place where the visual tokens go.

Text from a manifest can't leave its place: whatever would become a control token in it is broken by a space first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from mlb_batch.cost.schedule import ClipShape
from mlb_batch.errors import ModelError, RowError
from mlb_batch.prune import Pruning
from mlb_batch.vlm.checkpoint import Checkpoint, read_json
from mlb_batch.vlm.choices import LETTERS, choice_text
from mlb_batch.vlm.small_files import tokenizer_of

MAX_PROMPT_TOKENS = 4096
# Where neither tokenizer nor config says: the ids that the published checkpoints of the family have.
_PLACEHOLDER = {
    "llava_onevision": ("video", ("video_token_id", "video_token_index"), 151647),
    "llava_next": ("image", ("image_token_id", "image_token_index"), 32000),
    "llava": ("image", ("image_token_id", "image_token_index"), 32000),
}


# Before a template that writes the date: an answer must not hang on the day, and a job goes past midnight. The day is
# the one that such templates name where they know no clock.
_A_DAY = "{% macro strftime_now(form) %}26 Jul 2024{% endmacro +%}"


class Prompter:
    """Tokens before and behind the visual ones; needs the tokenizer, not the weights."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.tokenizer = tokenizer_of(checkpoint)
        self.tokenizer.chat_template = _template(checkpoint, self.tokenizer.chat_template)
        if not self.tokenizer.chat_template:
            raise ModelError(f"{checkpoint.name}: its tokenizer has no chat template; add chat_template.jinja to it")
        if "strftime_now" in str(self.tokenizer.chat_template):
            self.tokenizer.chat_template = _A_DAY + str(self.tokenizer.chat_template)
        self._shape = checkpoint.shape
        self._kind, keys, default = _PLACEHOLDER[self._shape.family]
        # The tokenizer's own goes first, as in transformers' processor: the configs of some name another number.
        self._own = _id_of(f"<{self._kind}>", self.tokenizer)
        told = next((checkpoint.config[k] for k in keys if k in checkpoint.config), default)
        self._placeholder = told if self._own is None else self._own
        added = self.tokenizer.added_tokens_decoder.values()
        # Without the spaces around one: a space that comes in breaks it only between characters that are none.
        controls = {c for t in added if len(c := t.content.strip()) > 1 and (t.special or not c.isalnum())}
        self._controls = sorted(controls, key=len, reverse=True)  # a word that was added is a word
        self._unbreakable = {c for t in added if t.special and len(c := t.content.strip() or t.content) == 1}
        self.prefix: tuple[int, ...] = self._cut("a")[0]

    def suffix(self, kind: str, text: str, choices: Sequence[str] = ()) -> tuple[int, ...]:
        """Token ids behind the visual tokens: the rest of the template around the prompt."""
        if not text.strip():
            raise RowError("bad_prompt", "the prompt is empty")
        prefix, suffix = self._cut(self._harmless(choice_text(text, choices) if kind == "choice" else text))
        if prefix != self.prefix:
            raise ModelError(f"the chat template puts the prompt before the {self._kind}; it must stand behind it")
        if len(suffix) > MAX_PROMPT_TOKENS:
            raise RowError("bad_prompt", f"the prompt has {len(suffix)} tokens; at most {MAX_PROMPT_TOKENS} are taken")
        return suffix

    def asked(self, method: Pruning, kind: str, text: str, choices: Sequence[str] = ()) -> tuple[int, ...]:
        """The same, of a prompt beside which a two-stage method has room: alone, so that no neighbour fails with it."""
        suffix, side = self.suffix(kind, text, choices), self._shape.side
        clip = ClipShape(1, side, side, len(self.prefix), self._shape.trailer, (len(suffix),))
        if not method.traits.fits(self._shape, clip):
            raise RowError(
                "bad_prompt",
                f"the prompt has {len(suffix)} tokens, which leaves no room in the model's context of "
                f"{self._shape.decoder.context} for a frame and an answer",
            )
        return suffix

    def letter_ids(self, count: int) -> list[list[int]]:
        """For each option its letter's tokens: alone, and behind a space."""
        return [
            sorted({self.tokenizer.encode(form, add_special_tokens=False)[-1] for form in (letter, " " + letter)})
            for letter in LETTERS[:count]
        ]

    def _harmless(self, text: str) -> str:
        """Control tokens written out in the text, broken so that they stay text."""
        if found := self._unbreakable.intersection(text):
            raise RowError(
                "bad_prompt", f"the prompt holds {found.pop()!r}, a control token of this model; leave it out"
            )
        for control in self._controls:
            while control in text:
                text = text.replace(control, control[:1] + " " + control[1:])
        return text

    def _cut(self, text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        message = {"role": "user", "content": [{"type": self._kind}, {"type": "text", "text": text}]}
        conversation: list[Any] = [message]
        try:
            rendered = str(self.tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True))
        except (TemplateError, TypeError, AttributeError, ValueError, LookupError, ArithmeticError,
                RecursionError) as error:  # fmt: skip  # one for text alone, for instance
            raise ModelError(f"the chat template takes no message with a {self._kind} and a text: {error}") from error
        # The template writes its own control tokens; only where it writes no opening one is the tokenizer's added.
        bos = self.tokenizer.bos_token
        ids = self.tokenizer.encode(rendered, add_special_tokens=not (bos and rendered.startswith(bos)))
        places = [i for i, token in enumerate(ids) if token == self._placeholder]
        if not places and self._own is None:
            raise ModelError(f"its tokenizer has no token <{self._kind}>; take the files of the model's own tokenizer")
        if len(places) != 1:
            raise ModelError(f"the chat template names the {self._kind} {len(places)} times; it must once")
        return tuple(ids[: places[0]]), tuple(ids[places[0] + 1 :])


def _id_of(token: str, tokenizer: PreTrainedTokenizerBase) -> int | None:
    id = tokenizer.convert_tokens_to_ids(token)
    return id if isinstance(id, int) and id != tokenizer.unk_token_id else None


def _template(checkpoint: Checkpoint, own: Any) -> Any:
    """As transformers' processor takes it: older downloads keep the template that knows of videos and images in one of
    two files beside the tokenizer's own, and these go before chat_template.jinja. Of several the default.
    """
    paths = [checkpoint.folder / name for name in ("processor_config.json", "chat_template.json")]
    beside = [read_json(path).get("chat_template") for path in paths if path.is_file()]
    found = next((one for one in beside if one is not None), own)
    return found.get("default") if isinstance(found, dict) else found
