"""The two-stage and merging methods as one direct, unbatched run in plain PyTorch, read off the model's weights.

A layer is written out here: norm, projections, rotation, softmax over what may be seen, feed-forward. Keys are held
unrotated and turned when they are looked at, so that moving a token is giving it another position.

Shapes: T tokens, D hidden width, H heads, h key/value heads, d head width, Q query rows, N visual tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from models import Spec, eager
from statements import Groups
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

Pick = Callable[[int, Tensor], Groups]  # segment, attention H x Q x N -> the tokens that it hands on
Cache = list[tuple[Tensor, Tensor, Tensor]]  # per layer: unrotated keys T x h x d, values, positions


@dataclass(frozen=True)
class Parts:
    """One clip and its prompts, embedded."""

    prefix_PD: Tensor
    visual_ND: Tensor
    trailer_RD: Tensor
    suffixes_SD: list[Tensor]


class Plain:
    """The language model of a checkpoint, in a few lines. `stretched`: tokens that dynamic RoPE scaling allows for."""

    def __init__(self, spec: Spec, stretched: int = 0) -> None:
        model = eager(spec)
        self.text, self.head, self.embed = model.model.language_model, model.lm_head, model.get_input_embeddings()
        config = self.text.config
        self.frequency_d = self.text.rotary_emb.inv_freq
        if stretched > spec.context:
            scaling = {**config.rope_parameters, "rope_type": "dynamic", "factor": 2.0}
            scaled = type(config)(**{**config.to_dict(), "rope_parameters": scaling})
            self.frequency_d = ROPE_INIT_FUNCTIONS["dynamic"](scaled, torch.device("cpu"), seq_len=stretched)[0]

    def turn(self, x_Thd: Tensor, position_T: Tensor) -> Tensor:
        angle = position_T[:, None] * self.frequency_d
        cos, sin = angle.cos()[:, None], angle.sin()[:, None]
        a, b = x_Thd.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)

    def layer(self, index: int, hidden_TD: Tensor, position_T: Tensor,
              cache: Cache) -> tuple[Tensor, Tensor]:  # fmt: skip
        """New tokens behind what the cache holds; the cache takes them in. The attention is H x T x keys."""
        layer = self.text.layers[index]
        attention, x = layer.self_attn, layer.input_layernorm(hidden_TD)
        width = attention.head_dim
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        query, key, value = (project(x).unflatten(-1, (-1, width)) for project in projections)
        old_keys, old_values, old_positions = cache[index]
        keys, values = torch.cat([old_keys, key]), torch.cat([old_values, value])
        positions = torch.cat([old_positions, position_T])
        cache[index] = (keys, values, positions)
        q, k = self.turn(query, position_T), self.turn(keys, positions)
        groups = query.shape[1] // key.shape[1]
        logits = torch.einsum("qhd,khd->hqk", q, k.repeat_interleave(groups, 1)) / width**0.5
        behind = torch.arange(len(keys))[None, :] > torch.arange(len(old_keys), len(keys))[:, None]
        paid = logits.masked_fill(behind, -torch.inf).softmax(-1)
        mixed = torch.einsum("hqk,khd->qhd", paid, values.repeat_interleave(groups, 1)).flatten(1)
        hidden_TD = hidden_TD + attention.o_proj(mixed)
        y = layer.post_attention_layernorm(hidden_TD)
        mlp = layer.mlp
        return hidden_TD + mlp.down_proj(torch.nn.functional.silu(mlp.gate_proj(y)) * mlp.up_proj(y)), paid

    def empty(self) -> Cache:
        attention = self.text.layers[0].self_attn
        none = torch.zeros(0, self.text.config.num_key_value_heads, attention.head_dim)
        return [(none, none, torch.zeros(0)) for _ in self.text.layers]

    def run(self, hidden_TD: Tensor, layers: range, cache: Cache, first: int = 0) -> tuple[Tensor, Tensor]:
        paid = torch.zeros(0)
        positions = torch.arange(first, first + len(hidden_TD)).float()
        for index in layers:
            hidden_TD, paid = self.layer(index, hidden_TD, positions, cache)
        return hidden_TD, paid

    def follow(self, last_D: Tensor, said: tuple[int, ...], cache: Cache, position: int) -> Tensor:
        """The logits before every token that was said, one token after the other on the cache."""
        logits = [self.head(self.text.norm(last_D))]
        for token in said[:-1]:
            hidden_1D, _ = self.run(self.embed(torch.tensor([token])), range(len(self.text.layers)), cache, position)
            logits.append(self.head(self.text.norm(hidden_1D[0])))
            position += 1
        return torch.stack(logits)


def merged(x_T: Tensor, groups: Groups) -> Tensor:
    """Weighted sums of rows."""
    return torch.stack([sum(w * x_T[i] for i, w in group) for group in groups])


@torch.inference_mode()
def pooled_run(spec: Spec, parts: Parts, groups: Groups, prompt: int, said: tuple[int, ...]) -> Tensor:
    """Tokens that were merged before the first layer: a shorter clip, numbered anew."""
    plain = Plain(spec)
    visual_KD = merged(parts.visual_ND, groups)
    sequence = torch.cat([parts.prefix_PD, visual_KD, parts.trailer_RD, parts.suffixes_SD[prompt]])
    cache = plain.empty()
    hidden_TD, _ = plain.run(sequence, range(len(plain.text.layers)), cache)
    return plain.follow(hidden_TD[-1], said, cache, len(sequence))


@dataclass(frozen=True)
class TwoStages:
    segments: tuple[int, ...]  # visual tokens of each
    layers: int
    refeed: bool
    question: str
    room: int  # new tokens, for which RoPE leaves room

    @torch.inference_mode()
    def run(self, spec: Spec, parts: Parts, prompts: list[int], pick: Pick,
            said: list[tuple[int, ...]]) -> list[Tensor]:  # fmt: skip
        """One selection for all `prompts`: each segment with each prompt alone, then what is joined, each alone."""
        plain = Plain(spec)
        first = {p: [self._segment(plain, parts, p, s) for s in range(len(self.segments))] for p in prompts}
        chosen = []
        for s, size in enumerate(self.segments):
            visual = slice(len(parts.prefix_PD), len(parts.prefix_PD) + size)
            chosen.append(pick(s, torch.cat([first[p][s].paid[:, -1:, visual] for p in prompts], dim=1)))
        longest = max(len(parts.suffixes_SD[p]) for p in prompts)
        joined = len(parts.prefix_PD) + sum(map(len, chosen)) + len(parts.trailer_RD) + longest
        stretched = Plain(spec, joined + self.room)
        return [
            self._second(stretched, parts, p, first[p], chosen, tokens) for p, tokens in zip(prompts, said, strict=True)
        ]

    def _segment(self, plain: Plain, parts: Parts, prompt: int, s: int) -> Segment:
        """Prefix, one segment's tokens and the prompt, through the first layers, as if there were nothing else."""
        visual_ND = parts.visual_ND.split(self.segments)[s]
        embeds = torch.cat([parts.prefix_PD, visual_ND, parts.trailer_RD, parts.suffixes_SD[prompt]])
        cache = plain.empty()
        hidden_TD, paid = plain.run(embeds, range(self.layers), cache)
        return Segment(embeds, hidden_TD, paid, cache[: self.layers])

    def _second(self, plain: Plain, parts: Parts, prompt: int, first: list[Segment], chosen: list[Groups],
                said: tuple[int, ...]) -> Tensor:  # fmt: skip
        cache, total = plain.empty(), len(plain.text.layers)

        def join(of: list[Tensor]) -> Tensor:
            return self._join(parts, prompt, of, chosen)

        if self.refeed:
            sequence, layers = join([s.embeds for s in first]), range(total)
        else:
            sequence, layers = join([s.hidden for s in first]), range(self.layers, total)
            for index in range(self.layers):
                keys, values = (join([s.cache[index][part] for s in first]) for part in (0, 1))
                cache[index] = (keys, values, torch.arange(len(keys)).float())
        hidden_TD, _ = plain.run(sequence, layers, cache)
        return plain.follow(hidden_TD[-1], said, cache, len(sequence))

    def _join(self, parts: Parts, prompt: int, of: list[Tensor], chosen: list[Groups]) -> Tensor:
        """Prefix once, what each segment hands on, the closing tokens of the last one, and the prompt once."""
        before, behind = len(parts.prefix_PD), len(parts.trailer_RD)
        length = len(parts.suffixes_SD[prompt])
        kept = [merged(x[before:], groups) for x, groups in zip(of, chosen, strict=True)]
        questions = [x[len(x) - length :] for x in of]
        question = questions[-1] if self.question == "last" else sum(questions) / len(questions)
        trailer = of[-1][len(of[-1]) - length - behind : len(of[-1]) - length]
        return torch.cat([of[0][:before], *kept, trailer, question])


@dataclass(frozen=True)
class Segment:
    embeds: Tensor
    hidden: Tensor
    paid: Tensor
    cache: Cache
