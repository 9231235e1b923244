"""Generation on ragged caches: one packed step for all sequences that still run, each on keys of its own length.

Shapes: B running sequences, D hidden width, H query heads, h key/value heads, d head width, S cached keys.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mlb_batch.cost import flops
from mlb_batch.vlm.attention import attend_last
from mlb_batch.vlm.decoder import Decoder
from mlb_batch.vlm.sequence import Prefilled

NO_NUMBERS = "no_numbers"  # how a sequence ends whose logits are NaN or infinite: what is drawn from those is no answer


@dataclass(frozen=True)
class Sampling:
    """How one sequence draws its tokens: greedily at temperature 0, else from a generator of its own."""

    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0


@dataclass
class Sequence:
    """One prompt while it generates: caches that grow in place, and what it has said."""

    keys: list[Tensor]  # per layer, h x room x d
    values: list[Tensor]
    lengths: list[int]  # per layer: keys in use
    position: int
    prefilled: Prefilled
    sampling: Sampling
    generator: torch.Generator
    first_logits_V: Tensor
    tokens: list[int] = field(default_factory=list)
    finish_reason: str = ""
    operations: int = 0

    @classmethod
    def of(cls, prefilled: Prefilled, sampling: Sampling, logits_V: Tensor) -> Sequence:
        room = sampling.max_new_tokens
        return cls(
            keys=[_with_room(k, room) for k in prefilled.keys],
            values=[_with_room(v, room) for v in prefilled.values],
            lengths=[k.shape[1] for k in prefilled.keys],
            position=prefilled.next_position,
            prefilled=prefilled,
            sampling=sampling,
            generator=torch.Generator().manual_seed(sampling.seed),
            first_logits_V=logits_V,
        )

    def attend(self, layer: int, q_H1d: Tensor, k_h1d: Tensor, v_h1d: Tensor, scale: float) -> Tensor:
        """Append one token's key and value, and look at all of them."""
        at = self.lengths[layer]
        self.keys[layer][:, at : at + 1], self.values[layer][:, at : at + 1] = k_h1d, v_h1d
        self.lengths[layer] = at + 1
        return attend_last(q_H1d, self.keys[layer][:, : at + 1], self.values[layer][:, : at + 1], scale)

    def take(self, logits_V: Tensor, likeliest: int, stop: frozenset[int]) -> None:
        """The next token; a stop token ends the sequence and is not part of what it says."""
        token = likeliest if self.sampling.temperature == 0 else self._draw(logits_V)
        self.tokens.append(token)
        if token in stop:
            self.finish_reason = "stop"
        elif len(self.tokens) == self.sampling.max_new_tokens:
            self.finish_reason = "length"

    def _draw(self, logits_V: Tensor) -> int:
        probability_V = torch.softmax(logits_V.double().cpu() / self.sampling.temperature, dim=-1)
        return int(torch.multinomial(probability_V, 1, generator=self.generator))


@dataclass
class Step:
    """The layout of one generated token a sequence."""

    running: list[Sequence]

    def attend(self, layer: int, q_HBd: Tensor, k_hBd: Tensor, v_hBd: Tensor, scale: float) -> Tensor:
        rows = [slice(b, b + 1) for b in range(len(self.running))]
        return torch.cat([
            s.attend(layer, q_HBd[:, r], k_hBd[:, r], v_hBd[:, r], scale)
            for s, r in zip(self.running, rows, strict=True)
        ], dim=1)  # fmt: skip


def generate(decoder: Decoder, prefilled: list[Prefilled], samplings: list[Sampling],
             stop: frozenset[int]) -> list[Sequence]:  # fmt: skip
    """Every sequence to its end; one that finishes leaves the batch."""
    logits_BV = decoder.logits(torch.stack([p.last_D for p in prefilled]))
    sequences = [Sequence.of(p, s, logits_V) for p, s, logits_V in zip(prefilled, samplings, logits_BV, strict=True)]
    running = _taken(decoder, sequences, logits_BV, stop)
    while running:
        running = _taken(decoder, running, _step(decoder, running), stop)
    return sequences


def _taken(decoder: Decoder, running: list[Sequence], logits_BV: Tensor, stop: frozenset[int]) -> list[Sequence]:
    most_B, likeliest_B = logits_BV.max(dim=-1)
    found = torch.stack([likeliest_B, most_B.isfinite().long()], dim=1).tolist()  # one wait for the device a step
    for sequence, logits_V, (likeliest, numbers) in zip(running, logits_BV, found, strict=True):
        if numbers:
            sequence.take(logits_V, likeliest, stop)
        else:
            sequence.finish_reason = NO_NUMBERS
        sequence.operations += flops.head(decoder.shape.decoder, 1)
    return [s for s in running if not s.finish_reason]


def _step(decoder: Decoder, running: list[Sequence]) -> Tensor:
    """Logits behind the last token of every running sequence."""
    hidden_BD = decoder.embed([s.tokens[-1] for s in running])
    turns = [
        s.prefilled.rope.cos_sin(torch.tensor([s.position], device=hidden_BD.device), hidden_BD.dtype) for s in running
    ]
    rotations = torch.cat([c for c, _ in turns])[None], torch.cat([s for _, s in turns])[None]
    layout, shape = Step(running), decoder.shape.decoder
    for index in range(len(decoder.layers)):
        hidden_BD = decoder.layer(index, hidden_BD, rotations, layout)
    for sequence in running:
        sequence.position += 1
        sequence.operations += shape.layers * flops.layer(shape, 1, 0)
        sequence.operations += flops.attend(shape.q_dim, sum(sequence.lengths))
    return decoder.logits(hidden_BD)


def _with_room(x_hSd: Tensor, room: int) -> Tensor:
    heads, length, width = x_hSd.shape
    out = x_hSd.new_empty(heads, length + room, width)
    out[:, :length] = x_hSd
    return out
