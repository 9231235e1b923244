"""The language model as the engine uses it: its embedding, layers, norm and head, called one by one.

Shapes: T packed tokens, D hidden width, B sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mlb_batch.cost.shapes import ModelShape
from mlb_batch.vlm.attention import NAME, Layout
from mlb_batch.vlm.moving import sent
from mlb_batch.vlm.rope import Rope


@dataclass(frozen=True)
class Decoder:
    embedding: nn.Module
    layers: Sequence[nn.Module]
    norm: nn.Module
    head: nn.Module
    rope: Rope
    shape: ModelShape

    @classmethod
    def of(cls, model: Any, shape: ModelShape) -> Decoder:
        """The parts of a loaded transformers vision-language model."""
        text = model.model.language_model
        assert text.config._attn_implementation == NAME, "load the model with our attention"
        rope = Rope.of(text.rotary_emb, shape.decoder.context)  # the one that the plan reckons with
        return cls(text.embed_tokens, list(text.layers), text.norm, model.lm_head, rope, shape)

    @property
    def device(self) -> torch.device:
        return next(self.norm.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.norm.parameters()).dtype

    def scale(self, index: int) -> float:
        attention: Any = self.layers[index].self_attn
        return float(attention.scaling)

    def embed(self, ids: Sequence[int]) -> Tensor:
        out: Tensor = self.embedding(sent(torch.tensor(ids, dtype=torch.long), self.device))
        return out

    def layer(self, index: int, hidden_TD: Tensor, rotations: tuple[Tensor, Tensor], layout: Layout) -> Tensor:
        """One of transformers' own layers over the packed row."""
        out_1TD = self.layers[index](hidden_TD[None], attention_mask=None, position_embeddings=rotations, layout=layout)
        out: Tensor = out_1TD[0]
        return out

    def logits(self, hidden_BD: Tensor) -> Tensor:
        out: Tensor = self.head(self.norm(hidden_BD)).float()
        return out
