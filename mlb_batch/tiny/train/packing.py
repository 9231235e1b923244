"""Clips and their questions -> one packed batch: a clip's visual tokens stand once, each question branches off.

Branches see the prefix and themselves, never each other, and their positions follow the prefix; so the answer to each
is what the model would give if the question stood alone, at a fraction of the cost.

Legend: B clips, L tokens in the packed row.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from mlb_batch.tiny.train.branches import Branches, branches_of


@dataclass(frozen=True)
class Dialogue:
    """One prompt and its answer; `kind` is for the figures."""

    prompt: str
    answer: str
    kind: str


@dataclass(frozen=True)
class Packed:
    ids_BL: Tensor
    position_BL: Tensor
    label_BL: Tensor  # the next token where it belongs to an answer, else -100
    branch_BL: Tensor  # which dialogue a token belongs to, -1 for the prefix, -2 for padding

    @cached_property
    def branches(self) -> Branches:
        return branches_of(self.branch_BL)

    @cached_property
    def seen_B1LL(self) -> Tensor:
        """The same as a mask."""
        causal_LL = torch.ones(self.ids_BL.shape[1:] * 2, dtype=torch.bool, device=self.ids_BL.device).tril()
        same_BLL = self.branch_BL[:, :, None] == self.branch_BL[:, None, :]
        return ((same_BLL | (self.branch_BL == -1)[:, None, :]) & causal_LL)[:, None]

    def to(self, device: torch.device) -> Packed:
        return Packed(*(part.to(device) for part in self._parts))

    def only(self, index_BK: Tensor) -> Packed:
        """Of each row only these tokens, where they stood."""
        return Packed(*(part.gather(1, index_BK) for part in self._parts))

    @property
    def _parts(self) -> tuple[Tensor, ...]:
        return self.ids_BL, self.position_BL, self.label_BL, self.branch_BL


@dataclass(frozen=True)
class _Row:
    """Of each token: its id, its position, the token to come next, and its branch. The first ones are the prefix."""

    prefix: int
    ids: list[int]
    positions: list[int]
    labels: list[int]
    branches: list[int]


class Packer:
    """Keeps the tokenizer's work: prompts repeat a lot."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, media: str) -> None:
        self.tokenizer = tokenizer
        self.media = media
        token = tokenizer.convert_tokens_to_ids(f"<{media}>")
        assert isinstance(token, int)
        self.media_id = token
        assert tokenizer.eos_token is not None
        self.end: str = tokenizer.eos_token
        self.branch = lru_cache(maxsize=200_000)(self._branch)

    def _branch(self, prompt: str, answer: str) -> tuple[tuple[int, ...], tuple[int, ...], int]:
        """Ids before the visual tokens, ids after them with the answer, and how many of those are the prompt's."""
        content = [{"type": self.media}, {"type": "text", "text": prompt}]
        message: list[Any] = [{"role": "user", "content": content}]
        text = self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        assert isinstance(text, str)
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        at = ids.index(self.media_id)
        full = self.tokenizer(self._answered(text, answer), add_special_tokens=False).input_ids
        assert full[: len(ids)] == ids
        return tuple(ids[:at]), tuple(full[at + 1 :]), len(ids) - at - 1

    def _answered(self, text: str, answer: str) -> str:
        """A generation prompt that ends without a break (`ASSISTANT:`) is followed by a space."""
        return f"{text}{'' if text.endswith(chr(10)) else ' '}{answer}{self.end}"

    def pack_visual(self, visual_tokens: int, dialogues: list[list[Dialogue]]) -> Packed:
        """Dialogues about clips, each with as many visual tokens."""
        return self._pack([[self.media_id] * visual_tokens] * len(dialogues), dialogues)

    def pack_read(self, texts: list[str], dialogues: list[list[Dialogue]]) -> Packed:
        """Dialogues about texts, which stand where the visual tokens would."""
        return self._pack([self.tokenizer(text, add_special_tokens=False).input_ids for text in texts], dialogues)

    def _pack(self, contexts: list[list[int]], dialogues: list[list[Dialogue]]) -> Packed:
        rows = [self._row(context, talks) for context, talks in zip(contexts, dialogues, strict=True)]
        prefix = max(row.prefix for row in rows)
        length = prefix + max(len(row.ids) - row.prefix for row in rows)
        pad = self.tokenizer.pad_token_id
        ids_BL, position_BL, label_BL, branch_BL = (
            torch.tensor([_filled(getattr(row, part), row.prefix, prefix, length, fill) for row in rows])
            for part, fill in (("ids", pad), ("positions", 0), ("labels", -100), ("branches", -2))
        )
        return Packed(ids_BL, position_BL, label_BL, branch_BL)

    def _row(self, context: list[int], talks: list[Dialogue]) -> _Row:
        before = self.branch(talks[0].prompt, talks[0].answer)[0]
        ids = [*before, *context]
        prefix = len(ids)
        positions, labels, branches = list(range(prefix)), [-100] * prefix, [-1] * prefix
        for index, talk in enumerate(talks):
            _, after, asked = self.branch(talk.prompt, talk.answer)
            ids += after
            positions += range(prefix, prefix + len(after))
            labels += [*[-100] * (asked - 1), *after[asked:], -100]
            branches += [index] * len(after)
        return _Row(prefix, ids, positions, labels, branches)


def _filled(part: list[int], own_prefix: int, prefix: int, length: int, fill: int) -> list[int]:
    """A row with its prefix as long as the longest one, and as long as the longest row."""
    whole = [*part[:own_prefix], *[fill] * (prefix - own_prefix), *part[own_prefix:]]
    return whole + [fill] * (length - len(whole))
