"""A second opinion on every run: the full-length sequence through transformers' eager attention, masked by layer.

Nothing of the engine is called. No token ever leaves: one that a method has dropped at a layer stays in the sequence,
and from that layer on no other may see it. Sequences run alone and without a cache.

Shapes: T tokens of the sequence, D hidden width, H heads, Q query rows, N visual tokens, S steps, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from models import Spec, eager
from torch import Tensor

# layer, and the attention of the layer below for every lane (H x T x T; None before the first) -> for each lane the
# visual tokens (by place) that this layer and all above it see
Decide = Callable[[int, list[Tensor] | None], list[list[int]]]


def pixel_values(spec: Spec, pixels_FHWC: np.ndarray) -> Tensor:
    """What the family's processor makes of frames that have its size already."""
    if spec.family == "llava_onevision":
        mean, std = np.full(3, 0.5), np.full(3, 0.5)
    else:
        mean = np.array([0.48145466, 0.4578275, 0.40821073])
        std = np.array([0.26862954, 0.26130258, 0.27577711])
    scaled = (pixels_FHWC / 255.0 - mean) / std
    return torch.tensor(scaled.transpose(0, 3, 1, 2), dtype=torch.float32)


@torch.inference_mode()
def visual_tokens(spec: Spec, pixels_FHWC: np.ndarray) -> tuple[Tensor, Tensor]:
    """transformers' own features: the visual tokens, and those that close the sequence."""
    model, pixels = eager(spec), pixel_values(spec, pixels_FHWC)
    if spec.family == "llava_onevision":
        all_TD = model.get_video_features(pixels[None]).pooler_output[0]
        # Older transformers add the closing newline later, to the sequence.
        newline_1D = model.model.image_newline[None]
        return (all_TD[:-1] if torch.equal(all_TD[-1:], newline_1D) else all_TD), newline_1D
    if spec.family == "llava":
        frames = model.get_image_features(pixel_values=pixels).pooler_output
        return torch.cat(list(frames)), pixels.new_zeros(0, frames[0].shape[-1])
    # LLaVA-NeXT always tiles an image; its base view alone is the tower and the projector.
    hidden = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    tokens_FKD = model.model.multi_modal_projector(hidden)
    return tokens_FKD.flatten(0, 1), tokens_FKD.new_zeros(0, tokens_FKD.shape[-1])


@dataclass
class Lane:
    """One prompt on one clip, as one sequence."""

    embeds_TD: Tensor
    prefix: int
    visual: int
    prompt: int  # tokens before generation starts
    logits_SV: Tensor = field(init=False)

    @property
    def columns(self) -> slice:
        return slice(self.prefix, self.prefix + self.visual)


def lane(spec: Spec, prefix: Sequence[int], pixels_FHWC: np.ndarray, suffix: Sequence[int],
         mean_frame: bool = False) -> Lane:  # fmt: skip
    visual_ND, trailer_RD = visual_tokens(spec, pixels_FHWC)
    if mean_frame:
        mean_KD = visual_ND.unflatten(0, (len(pixels_FHWC), -1)).mean(dim=0)
        visual_ND = mean_KD.repeat(len(pixels_FHWC), 1)
    embed = eager(spec).get_input_embeddings()
    parts = [embed(torch.tensor(list(prefix))), visual_ND, trailer_RD, embed(torch.tensor(list(suffix)))]
    embeds_TD = torch.cat(parts)
    return Lane(embeds_TD, len(prefix), len(visual_ND), len(embeds_TD))


@torch.inference_mode()
def forward(spec: Spec, lanes: list[Lane], see: Decide, compact: bool = False,
            layers: int | None = None) -> tuple[list[Tensor], list[Tensor]]:  # fmt: skip
    """All layers over all lanes in step; the last hidden states, and the attention of the last layer that ran."""
    text = eager(spec).model.language_model
    layers = layers or len(text.layers)
    hidden = [one.embeds_TD for one in lanes]
    turns = [text.rotary_emb(x[None], torch.arange(len(x))[None]) for x in hidden]
    seen = [see(index, None) for index in range(layers)] if compact else []
    paid: list[Tensor] | None = None
    for index in range(layers):
        alive = see(index, paid)
        paid = []
        for i, one in enumerate(lanes):
            mask_TT = _mask(one, alive[i], seen[-1][i] if compact else alive[i])
            hidden[i], paid_HTT = _layer(text.layers[index], hidden[i], mask_TT, turns[i])
            paid.append(paid_HTT)
    assert paid is not None
    return hidden, paid


def _mask(one: Lane, alive: list[int], alive_for_new: list[int]) -> Tensor:
    """What may be seen: the past, without dropped visual tokens; every token sees itself, so that no row is empty."""
    length = len(one.embeds_TD)
    may_TT = torch.ones(length, length, dtype=torch.bool).tril()
    for rows, kept in ((slice(0, one.prompt), alive), (slice(one.prompt, length), alive_for_new)):
        visual = torch.zeros(one.visual, dtype=torch.bool)
        visual[kept] = True
        may_TT[rows, one.columns] &= visual
    may_TT |= torch.eye(length, dtype=torch.bool)
    return torch.where(may_TT, 0.0, torch.finfo(torch.float32).min)


def _layer(layer: Any, hidden_TD: Tensor, mask_TT: Tensor, turns: Any) -> tuple[Tensor, Tensor]:
    """One of transformers' layers, and the attention matrix that its eager attention hands out."""
    caught: list[Tensor] = []
    hook = layer.self_attn.register_forward_hook(lambda _module, _args, out: caught.append(out[1][0]))
    try:
        out = layer(hidden_TD[None], attention_mask=mask_TT[None, None], position_embeddings=turns)
    finally:
        hook.remove()
    return (out[0] if isinstance(out, tuple) else out)[0], caught[0]


@torch.inference_mode()
def follow(spec: Spec, lanes: list[Lane], see: Decide, said: Sequence[Sequence[int]], compact: bool = False) -> None:
    """The logits before every token that was said, in one full-length run: no token sees those behind it."""
    model = eager(spec)
    for one, tokens in zip(lanes, said, strict=True):
        behind = torch.tensor(list(tokens[:-1]), dtype=torch.long)
        one.embeds_TD = torch.cat([one.embeds_TD, model.get_input_embeddings()(behind)])
    hidden, _ = forward(spec, lanes, see, compact)
    for one, hidden_TD in zip(lanes, hidden, strict=True):
        one.logits_SV = model.lm_head(model.model.language_model.norm(hidden_TD[one.prompt - 1 :]))


def replay(cuts: list[list[tuple[int, list[int]]]], visual: int) -> Decide:
    """Given selections: for each lane the layer of every cut and the visual tokens that go on."""

    def see(index: int, _paid: list[Tensor] | None) -> list[list[int]]:
        out = []
        for lane_cuts in cuts:
            passed = [kept for at, kept in lane_cuts if at <= index]
            out.append(passed[-1] if passed else list(range(visual)))
        return out

    return see


@dataclass
class Agreement:
    """How near two runs came: the largest difference of logits, and how many greedy tokens were near-ties."""

    worst: float = 0.0
    compared: int = 0
    near_ties: int = 0

    def check(self, tokens: Sequence[int], logits_SV: Tensor, oracle_SV: Tensor, tolerance: float = 1e-4) -> None:
        """All logits agree, and each token is the oracle's best; another only where the best two are as near."""
        assert logits_SV.shape == oracle_SV.shape
        difference = float((logits_SV - oracle_SV).abs().max())
        assert difference <= tolerance, difference
        self.worst, self.compared = max(self.worst, difference), self.compared + len(tokens)
        for token, oracle_V in zip(tokens, oracle_SV, strict=True):
            if token != int(oracle_V.argmax()):
                assert float(oracle_V.max() - oracle_V[token]) <= 2 * tolerance, (tokens, oracle_SV.argmax(-1))
                self.near_ties += 1

    def report(self) -> None:
        print(f"tokens {self.compared}, worst difference {self.worst:.1e}, near-ties {self.near_ties}")
