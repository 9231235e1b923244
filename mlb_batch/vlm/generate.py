"""Generation on ragged caches: one packed step for all sequences that still run, each on keys of its own length.

Those that have ended leave, and others join, between two turns of many steps.

Shapes: B running sequences, D hidden width, H query heads, h key/value heads, d head width, S cached keys, V words.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mlb_batch.cost import flops
from mlb_batch.vlm.decoder import Decoder
from mlb_batch.vlm.moving import sent
from mlb_batch.vlm.replay import Replay
from mlb_batch.vlm.rooms import Rooms, Step
from mlb_batch.vlm.rope import Rope
from mlb_batch.vlm.sequence import Prefilled

NO_NUMBERS = "no_numbers"  # how a sequence ends whose logits are NaN or infinite: what is drawn from those is no answer


@dataclass(frozen=True)
class Sampling:
    """How one sequence draws its tokens: greedily at temperature 0, else from a generator of its own."""

    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0


@dataclass
class Generated:
    """One prompt while it generates."""

    room: int  # which of the rooms is its own, once it has one
    used: list[int]  # per layer: keys in use
    position: int
    prefilled: Prefilled
    sampling: Sampling
    generator: torch.Generator
    first_logits_V: Tensor
    tokens: list[int] = field(default_factory=list)
    finish_reason: str = ""
    operations: int = 0

    @classmethod
    def of(cls, prefilled: Prefilled, sampling: Sampling, logits_V: Tensor) -> Generated:
        return cls(
            room=-1,
            used=[k.shape[1] for k in prefilled.keys],
            position=prefilled.next_position,
            prefilled=prefilled,
            sampling=sampling,
            generator=torch.Generator().manual_seed(sampling.seed),
            first_logits_V=logits_V.clone(),  # a view would hold those of all that came along
        )

    @property
    def left(self) -> int:
        """How many tokens it may still get."""
        return self.sampling.max_new_tokens - len(self.tokens)

    @property
    def said(self) -> list[int]:
        """Without the stop token, which the tokenizer need not mark as special: it was made, but is no part of it."""
        return self.tokens[:-1] if self.finish_reason == "stop" else self.tokens

    def take(self, logits_V: Tensor, likeliest: int, stop: frozenset[int]) -> None:
        """The next token; a stop token ends the sequence."""
        token = likeliest if self.sampling.temperature == 0 else self._draw(logits_V)
        self.tokens.append(token)
        if token in stop:
            self.finish_reason = "stop"
        elif not self.left:
            self.finish_reason = "length"

    def _draw(self, logits_V: Tensor) -> int:
        probability_V = torch.softmax(logits_V.double().cpu() / self.sampling.temperature, dim=-1)
        return int(torch.multinomial(probability_V, 1, generator=self.generator))


class _Turns:
    """A token of each sequence, again and again. On a GPU, those that have ended take part until half have."""

    def __init__(self, decoder: Decoder, rooms: Rooms, running: list[Generated]) -> None:
        self._decoder, self.sequences = decoder, running
        self._step = Step(rooms, [s.room for s in running], [s.used for s in running])
        self._rope = Rope.of_each([s.prefilled.rope for s in running])
        self._position_B = sent(torch.tensor([s.position for s in running]), decoder.device)
        self._token_B = torch.zeros_like(self._position_B)
        self._replay = Replay() if self._step.packed else None

    def suit(self, running: int) -> bool:
        """Whether so many are best served by going on as it is: to leave one out means to record anew."""
        return running == len(self.sequences) or (self._step.packed and 2 * running > len(self.sequences))

    def logits(self) -> Tensor:
        """Behind the last token of every sequence."""
        shape = self._decoder.shape.decoder
        self._token_B.copy_(sent(torch.tensor([s.tokens[-1] for s in self.sequences]), self._decoder.device))
        logits_BV = self._replay(self._logits) if self._replay else self._logits()
        self._step.ended()
        for sequence in self.sequences:
            if not sequence.finish_reason:
                sequence.position += 1
                sequence.operations += shape.layers * flops.layer(shape, 1, 0)
                sequence.operations += flops.attend(shape.q_dim, sum(sequence.used))
        return logits_BV

    def _logits(self) -> Tensor:
        decoder = self._decoder
        hidden_BD: Tensor = decoder.embedding(self._token_B)
        cos_Bd, sin_Bd = self._rope.cos_sin(self._position_B, hidden_BD.dtype)
        for index in range(len(decoder.layers)):
            hidden_BD = decoder.layer(index, hidden_BD, (cos_Bd[None], sin_Bd[None]), self._step)
        self._position_B += 1
        self._step.moved_on()
        return decoder.logits(hidden_BD)


class Generation:
    """Sequences that generate together."""

    def __init__(self, decoder: Decoder, stop: frozenset[int]) -> None:
        self._decoder, self._stop = decoder, stop
        self._rooms = Rooms(len(decoder.layers))
        self._living = 0  # in a room, ended or not
        self._running: list[Generated] = []

    def join(self, prefilled: list[Prefilled], samplings: list[Sampling]) -> list[Generated]:
        """More of them, each with its first token. Their caches are taken from them."""
        logits_BV = self._decoder.logits(torch.stack([one.last_D for one in prefilled]))
        come = [Generated.of(*one) for one in zip(prefilled, samplings, logits_BV, strict=True)]
        self._move(_taken(self._decoder, come, logits_BV, self._stop))
        for one in prefilled:
            one.forget()
        return come

    def make_room(self) -> None:
        """What those that have ended held is free from here on."""
        if self._living > len(self._running):
            self._move([])

    def go_on(self) -> None:
        """A turn: token after token until some have ended; on a GPU, until half have."""
        turns = _Turns(self._decoder, self._rooms, self._running)
        while self._running and turns.suit(len(self._running)):
            self._running = _taken(self._decoder, turns.sequences, turns.logits(), self._stop)

    def finish(self) -> None:
        """All to their ends."""
        while self._running:
            self.go_on()

    def _move(self, come: list[Generated]) -> None:
        stay, self._running = self._running, [*self._running, *come]
        self._living = len(self._running)
        if not self._running:
            self._rooms = Rooms(len(self._decoder.layers))
            return
        self._rooms.move(
            [(one.room, one.used) for one in stay], [one.prefilled for one in come], [one.left for one in self._running]
        )
        for room, one in enumerate(self._running):
            one.room = room


def generate(decoder: Decoder, prefilled: list[Prefilled], samplings: list[Sampling],
             stop: frozenset[int]) -> list[Generated]:  # fmt: skip
    """Every sequence to its end. What was prefilled stays as it is."""
    together = Generation(decoder, stop)
    sequences = together.join([one.copy() for one in prefilled], samplings)
    together.finish()
    return sequences


def _taken(decoder: Decoder, sequences: list[Generated], logits_BV: Tensor, stop: frozenset[int]) -> list[Generated]:
    """Those that go on, each with its next token."""
    most_B, likeliest_B = logits_BV.max(dim=-1)
    found = torch.stack([likeliest_B, most_B.isfinite().long()], dim=1).tolist()  # one wait for the device a step
    for sequence, logits_V, (likeliest, numbers) in zip(sequences, logits_BV, found, strict=True):
        if sequence.finish_reason:
            continue
        if numbers:
            sequence.take(logits_V, likeliest, stop)
        else:
            sequence.finish_reason = NO_NUMBERS
        sequence.operations += flops.head(decoder.shape.decoder, 1)
    return [s for s in sequences if not s.finish_reason]
