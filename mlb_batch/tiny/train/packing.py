"""Clips and their questions -> one packed batch: a clip's visual tokens stand once, each question branches off.

Branches see the prefix and themselves, never each other, and their positions follow the prefix; so the answer to each
is what the model would give if the question stood alone, at a fraction of the cost.

Legend: B clips, L tokens in the packed row, T of them after the prefix, H heads, E a head's width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, PreTrainedTokenizerFast


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
    prefix: int  # how many tokens, at least, stand before a row's branches
    mask_B1TL: Tensor  # for the T tokens after the prefix: true where one may look
    label_BL: Tensor  # the next token where it belongs to an answer, else -100
    branch_BL: Tensor  # which dialogue a token belongs to, -1 for the prefix and padding


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
        length = max(len(row[0]) for row in rows)
        pad = self.tokenizer.pad_token_id
        ids_BL, position_BL, label_BL, branch_BL = (
            torch.full((len(rows), length), fill) for fill in (pad, 0, -100, -2)
        )
        for index, (ids, positions, labels, branches) in enumerate(rows):
            ids_BL[index, : len(ids)] = torch.tensor(ids)
            position_BL[index, : len(ids)] = torch.tensor(positions)
            label_BL[index, : len(ids)] = torch.tensor(labels)
            branch_BL[index, : len(ids)] = torch.tensor(branches)
        prefix = int((branch_BL == -1).sum(1).min())
        return Packed(ids_BL, position_BL, prefix, _mask(branch_BL)[:, :, prefix:], label_BL, branch_BL)

    def _row(self, context: list[int], talks: list[Dialogue]) -> tuple[list[int], list[int], list[int], list[int]]:
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
        return ids, positions, labels, branches


def packed_attention(
    module: nn.Module,
    query_BHLE: Tensor,
    key_BHLE: Tensor,
    value_BHLE: Tensor,
    attention_mask: Tensor,
    scaling: float,
    **_: object,
) -> tuple[Tensor, None]:
    """The prefix looks at itself causally, branches through their mask; in float32, whose backward is faster on CPU."""
    query, key, value = (part.float() for part in (query_BHLE, key_BHLE, value_BHLE))
    attend = partial(functional.scaled_dot_product_attention, scale=scaling, enable_gqa=key.shape[1] != query.shape[1])
    prefix = query.shape[2] - attention_mask.shape[2]
    shared = attend(query[:, :, :prefix], key[:, :, :prefix], value[:, :, :prefix], is_causal=True)
    branches = attend(query[:, :, prefix:], key, value, attn_mask=attention_mask)
    return torch.cat((shared, branches), 2).transpose(1, 2).contiguous(), None


AttentionInterface.register("packed", packed_attention)


def _mask(branch_BL: Tensor) -> Tensor:
    length = branch_BL.shape[1]
    causal_LL = torch.ones(length, length, dtype=torch.bool).tril()
    same_BLL = branch_BL[:, :, None] == branch_BL[:, None, :]
    prefix_BLL = (branch_BL == -1)[:, None, :].expand_as(same_BLL)
    return ((same_BLL | prefix_BLL) & causal_LL)[:, None]
