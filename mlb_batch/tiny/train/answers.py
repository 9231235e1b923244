"""Right or wrong: packed batches through a language model, by question kind.

An answer counts when every one of its tokens, its end too, is the model's most likely one given those before: that is
the same as generating it greedily.

Legend: B clips, L tokens in the packed row, D hidden width, A answer tokens of the batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from mlb_batch.tiny.train.packing import Dialogue, Packed

# Packed batch and the visual tokens that replace its placeholders, row by row.
Sample = tuple[Packed, Tensor, list[list[Dialogue]]]


@dataclass(frozen=True)
class Thinning:
    """From layer `at` on only these tokens of each row are there, of those that were until then."""

    at: int
    index_BK: Tensor


def answer_logits(
    model: PreTrainedModel, media_id: int, packed: Packed, visual_ND: Tensor, thinnings: Sequence[Thinning] = ()
) -> tuple[Tensor, Tensor]:
    """Logits and targets at every place where an answer's token comes next; with tokens that leave on the way up."""
    hidden_BLD, first = _embedded(model, media_id, packed, visual_ND), 0
    for thinning in thinnings:
        hidden_BLD = _read(model, hidden_BLD, packed, first, thinning.at)
        index_BK, first = thinning.index_BK.to(hidden_BLD.device), thinning.at
        packed = packed.only(index_BK)
        hidden_BLD = hidden_BLD.gather(1, index_BK[..., None].expand(-1, -1, hidden_BLD.shape[2]))
    return _answers(model, packed, _read(model, hidden_BLD, packed, first))


def answer_loss(
    model: PreTrainedModel, media_id: int, packed: Packed, visual_ND: Tensor, thinnings: Sequence[Thinning] = ()
) -> Tensor:
    return _loss(*answer_logits(model, media_id, packed, visual_ND, thinnings))


def noted_loss(
    model: PreTrainedModel, media_id: int, packed: Packed, visual_ND: Tensor, depth: int
) -> tuple[Tensor, Tensor]:
    """The loss, and the visual tokens' hidden states behind so many layers, in the order of the clips."""
    noted_BLD = _read(model, _embedded(model, media_id, packed, visual_ND), packed, 0, depth)
    hidden_BLD = _read(model, noted_BLD, packed, depth)
    return _loss(*_answers(model, packed, hidden_BLD)), noted_BLD[packed.ids_BL == media_id]


def _embedded(model: PreTrainedModel, media_id: int, packed: Packed, visual_ND: Tensor) -> Tensor:
    embedded_BLD: Tensor = model.get_input_embeddings()(packed.ids_BL)
    here_BL1 = (packed.ids_BL == media_id)[..., None]
    return embedded_BLD.masked_scatter(here_BL1, visual_ND.to(embedded_BLD.dtype))


def _read(
    model: PreTrainedModel, hidden_BLD: Tensor, packed: Packed, first: int = 0, stop: int | None = None
) -> Tensor:
    """Through the language model's layers from `first` up to, not including, `stop`; behind the last one, its norm."""
    language = model.model.language_model
    language.set_attn_implementation("sdpa" if hidden_BLD.is_cuda else "branched")
    seen = {"attention_mask": packed.seen_B1LL} if hidden_BLD.is_cuda else {"branches": packed.branches}
    rotation = language.rotary_emb(hidden_BLD, packed.position_BL)
    for layer in language.layers[first:stop]:
        hidden_BLD = layer(hidden_BLD, position_embeddings=rotation, **seen)
    return hidden_BLD if stop is not None else language.norm(hidden_BLD)


def _answers(model: PreTrainedModel, packed: Packed, hidden_BLD: Tensor) -> tuple[Tensor, Tensor]:
    asked_BL = packed.label_BL != -100
    return model.lm_head(hidden_BLD[asked_BL]), packed.label_BL[asked_BL]


def _loss(logits_AV: Tensor, target_A: Tensor) -> Tensor:
    return functional.cross_entropy(logits_AV.float(), target_A)


@torch.no_grad()
def accuracy(
    model: PreTrainedModel, media_id: int, samples: Iterable[Sample], label: Callable[[Dialogue], str],
    seen_below: int | None = None,
) -> dict[str, float]:  # fmt: skip
    """Share of right answers by what `label` calls a dialogue, and over all.

    `seen_below`: the layer before which all visual tokens leave.
    """
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for packed, visual_ND, dialogues in samples:
        gone = () if seen_below is None else (_gone(packed, media_id, seen_below),)
        for talk, correct in _judge(model, media_id, packed, visual_ND, dialogues, gone):
            for name in (label(talk), "all"):
                asked[name] += 1
                right[name] += correct
    return {name: round(right[name] / asked[name], 4) for name in sorted(asked)}


def _gone(packed: Packed, media_id: int, at: int) -> Thinning:
    """Nothing of any clip is left, where all are as long."""
    rows = len(packed.ids_BL)
    return Thinning(at, (packed.ids_BL != media_id).nonzero()[:, 1].view(rows, -1))


def _judge(
    model: PreTrainedModel, media_id: int, packed: Packed, visual_ND: Tensor, dialogues: list[list[Dialogue]],
    thinnings: Sequence[Thinning],
) -> list[tuple[Dialogue, bool]]:  # fmt: skip
    logits_AV, target_A = answer_logits(model, media_id, packed, visual_ND, thinnings)
    for thinning in thinnings:
        packed = packed.only(thinning.index_BK)
    wrong_BL = torch.zeros_like(packed.label_BL, dtype=torch.bool)
    wrong_BL[packed.label_BL != -100] = logits_AV.argmax(-1) != target_A
    return [
        (talk, not bool(wrong_BL[row][packed.branch_BL[row] == index].any()))
        for row, talks in enumerate(dialogues)
        for index, talk in enumerate(talks)
    ]
