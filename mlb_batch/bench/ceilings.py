"""What the device gives at best: a plain matrix product and a plain copy, measured in the same run as all else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from mlb_batch.bench.machine import settler
from mlb_batch.bench.rounds import Contender, lap

# Edge of the product, and the bytes of the copy: large enough to hide the call, small enough for a second.
_EDGE = {"cuda": 8192, "cpu": 1024}
_BYTES = {"cuda": 2**31, "cpu": 2**28}
_TURNS = 8


@dataclass(frozen=True)
class Ceilings:
    flops_per_s: float
    bytes_per_s: float  # read and written


def ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    edge, size = _EDGE[device.type], _BYTES[device.type] // dtype.itemsize
    a, b = (torch.randn(edge, edge, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(a)
    source = torch.ones(size, device=device, dtype=dtype)
    copy = torch.empty_like(source)
    settle = settler(device)
    product_s = _least_s(lambda: torch.mm(a, b, out=product), settle)
    copy_s = _least_s(lambda: copy.copy_(source), settle)
    return Ceilings(2 * edge**3 / product_s, 2 * size * dtype.itemsize / copy_s)


def _least_s(work: Contender, settle: Callable[[], None]) -> float:
    """The best of several turns: a ceiling is what is possible. The first, which warms up, is not counted."""
    lap(work, settle)
    return min(lap(work, settle)[1].wall_s for _ in range(_TURNS))
