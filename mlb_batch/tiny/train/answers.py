"""Right or wrong: packed batches through a language model, by question kind.

An answer counts when every one of its tokens, its end too, is the model's most likely one given those before: that is
the same as generating it greedily.

Legend: B clips, L tokens in the packed row, D hidden width, A answer tokens of the batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from mlb_batch.tiny.train.packing import Dialogue, Packed

# Packed batch and the visual tokens that replace its placeholders, row by row.
Sample = tuple[Packed, Tensor, list[list[Dialogue]]]


def answer_logits(model: PreTrainedModel, media_id: int, packed: Packed, visual_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and targets at every place where an answer's token comes next."""
    return _answers(model, packed, _run(model, media_id, packed, visual_ND).last_hidden_state)


def answer_loss(model: PreTrainedModel, media_id: int, packed: Packed, visual_ND: Tensor) -> Tensor:
    return _loss(*answer_logits(model, media_id, packed, visual_ND))


def noted_loss(
    model: PreTrainedModel, media_id: int, packed: Packed, visual_ND: Tensor, depth: int
) -> tuple[Tensor, Tensor]:
    """The loss, and the visual tokens' hidden states behind so many layers, in the order of the clips."""
    out = _run(model, media_id, packed, visual_ND, output_hidden_states=True)
    hidden_BLD = out.hidden_states[depth]
    return _loss(*_answers(model, packed, out.last_hidden_state)), hidden_BLD[packed.ids_BL == media_id]


def _run(model: PreTrainedModel, media_id: int, packed: Packed, visual_ND: Tensor, **more: Any) -> Any:
    embedded_BLD = model.get_input_embeddings()(packed.ids_BL)
    here_BL1 = (packed.ids_BL == media_id)[..., None]
    embedded_BLD = embedded_BLD.masked_scatter(here_BL1, visual_ND.to(embedded_BLD.dtype))
    language = model.model.language_model
    language.set_attn_implementation("branched")
    return language(
        inputs_embeds=embedded_BLD, position_ids=packed.position_BL, use_cache=False, branches=packed.branches, **more
    )


def _answers(model: PreTrainedModel, packed: Packed, hidden_BLD: Tensor) -> tuple[Tensor, Tensor]:
    asked_BL = packed.label_BL != -100
    return model.lm_head(hidden_BLD[asked_BL]), packed.label_BL[asked_BL]


def _loss(logits_AV: Tensor, target_A: Tensor) -> Tensor:
    return functional.cross_entropy(logits_AV.float(), target_A)


@torch.no_grad()
def accuracy(
    model: PreTrainedModel, media_id: int, samples: Iterable[Sample], label: Callable[[Dialogue], str]
) -> dict[str, float]:
    """Share of right answers by what `label` calls a dialogue, and over all."""
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for packed, visual_ND, dialogues in samples:
        for talk, correct in _judge(model, media_id, packed, visual_ND, dialogues):
            for name in (label(talk), "all"):
                asked[name] += 1
                right[name] += correct
    return {name: round(right[name] / asked[name], 4) for name in sorted(asked)}


def _judge(
    model: PreTrainedModel, media_id: int, packed: Packed, visual_ND: Tensor, dialogues: list[list[Dialogue]]
) -> list[tuple[Dialogue, bool]]:
    logits_AV, target_A = answer_logits(model, media_id, packed, visual_ND)
    wrong_BL = torch.zeros_like(packed.label_BL, dtype=torch.bool)
    wrong_BL[packed.label_BL != -100] = logits_AV.argmax(-1) != target_A
    return [
        (talk, not bool(wrong_BL[row][packed.branch_BL[row] == index].any()))
        for row, talks in enumerate(dialogues)
        for index, talk in enumerate(talks)
    ]
