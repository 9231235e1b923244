"""Rotary positions computed by us, per sequence and fixed at prefill.

transformers' own `dynamic` scaling follows the longest sequence of a batch and writes to the module; here a sequence
that outgrows the context is scaled by its own length, whatever its neighbours are.

Shapes: T tokens, d head width, h heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

_FACTOR = 2.0  # a sequence may be twice as long as the context


@dataclass(frozen=True)
class Rope:
    """The frequencies of one model; `scaled` gives those of a sequence longer than its context."""

    frequency_d: Tensor  # or one row a token, in what `of_each` gives
    amplitude: float
    context: int

    @classmethod
    def of(cls, rotary: Any, context: int) -> Rope:
        """`context`: what the model handles as it is, a `yarn` or `llama3` of its own included."""
        # The original frequencies: a module of `dynamic` type may have been rescaled by an earlier forward pass.
        frequency_d = getattr(rotary, "original_inv_freq", rotary.inv_freq)
        return cls(frequency_d.float(), float(rotary.attention_scaling), context)

    @staticmethod
    def of_each(ropes: Sequence[Rope]) -> Rope:
        """For one token of each of several sequences of one model, by the sequence's own frequencies."""
        return replace(ropes[0], frequency_d=torch.stack([rope.frequency_d for rope in ropes]))

    def scaled(self, length: int) -> Rope:
        """Dynamic NTK scaling for a sequence of `length` tokens; unchanged inside the context. That no sequence is more
        than twice as long, the method sees to.
        """
        if length <= self.context:
            return self
        half = len(self.frequency_d)
        stretch = _FACTOR * length / self.context - (_FACTOR - 1)
        # NTK: a base larger by stretch^(d / (d - 2)) slows each frequency by its own exponent 2i / d.
        exponent_d = torch.arange(half, device=self.frequency_d.device) / half
        slower_d = stretch ** (half / (half - 1) * exponent_d)
        return replace(self, frequency_d=self.frequency_d / slower_d)

    def angles(self, position_T: Tensor) -> Tensor:
        half = position_T.float()[:, None] * self.frequency_d
        return torch.cat([half, half], dim=-1)

    def cos_sin(self, position_T: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        angle_Td = self.angles(position_T)
        return (angle_Td.cos() * self.amplitude).to(dtype), (angle_Td.sin() * self.amplitude).to(dtype)

    def rotate(self, x_hTd: Tensor, position_T: Tensor) -> Tensor:
        """Unrotated keys turned to their positions."""
        angle_Td = self.angles(position_T)
        x = x_hTd.float()
        return ((x * angle_Td.cos() + _half_turned(x) * angle_Td.sin()) * self.amplitude).to(x_hTd.dtype)

    def unrotate(self, x_hTd: Tensor, position_T: Tensor) -> Tensor:
        """The inverse of `rotate`: keys as they were before their positions were put in."""
        angle_Td = self.angles(position_T)
        x = x_hTd.float()
        return ((x * angle_Td.cos() - _half_turned(x) * angle_Td.sin()) / self.amplitude).to(x_hTd.dtype)


def _half_turned(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)
