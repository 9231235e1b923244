"""The engine driven below the captioner: prefilled states, the logits of every step, and each clip's bill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from models import Spec, checkpoint, pair_checkpoint
from torch import Tensor

from mlb_batch.cost.flops import Bill
from mlb_batch.cost.schedule import WHOLE
from mlb_batch.prune import Pruning, make
from mlb_batch.vlm.decoder import Decoder
from mlb_batch.vlm.generate import Sampling, generate
from mlb_batch.vlm.inputs import ClipInput
from mlb_batch.vlm.load import load
from mlb_batch.vlm.meter import Meter
from mlb_batch.vlm.paired import Paired
from mlb_batch.vlm.prefill import prefill
from mlb_batch.vlm.prepare import Preparer, Source
from mlb_batch.vlm.preprocess import frame_recipe
from mlb_batch.vlm.prompts import Prompter
from mlb_batch.vlm.sequence import Prefilled
from mlb_batch.vlm.values import Settings

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """One clip and its prompts, as numbers."""

    pixels_FHWC: np.ndarray
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Ran:
    """What one prompt got."""

    prefilled: Prefilled
    tokens: tuple[int, ...]
    logits_SV: Tensor  # of every step


@dataclass(frozen=True)
class RanClip:
    given: ClipInput
    suffixes: tuple[tuple[int, ...], ...]
    bill: Bill
    paper_macs: int
    prompts: tuple[Ran, ...]


@cache
def model(spec: Spec, dtype: torch.dtype = torch.float32) -> Any:
    return load(checkpoint(spec), CPU, dtype)


@cache
def prompter(spec: Spec) -> Prompter:
    return Prompter(checkpoint(spec))


@cache
def paired() -> Paired:
    return Paired(pair_checkpoint(), CPU, torch.float32)


def settings(method: Pruning, keep: int = WHOLE, new_tokens: int = 10, **more: Any) -> Settings:
    return Settings(method=method, keep=keep, max_new_tokens=new_tokens, device="cpu", dtype="float32", **more)


def pruning(name: str, options: dict[str, Any] | None = None, select: str = "per_prompt",
            compact: bool = False) -> Pruning:  # fmt: skip
    return make(name, options, select, compact, paired=(options or {}).get("features") == "paired")


def prepared(spec: Spec, given: Settings, cases: Sequence[Case], meters: list[Meter],
             dtype: torch.dtype = torch.float32) -> tuple[Decoder, list[ClipInput], list[Source]]:  # fmt: skip
    asker, built = prompter(spec), model(spec, dtype)
    decoder = Decoder.of(built, checkpoint(spec).shape)
    pair = paired() if getattr(given.method.method, "features", "") == "paired" else None
    preparer = Preparer(built, decoder, frame_recipe(checkpoint(spec)), asker.prefix, given, pair)
    sources = [
        Source("key", c.pixels_FHWC, c.texts, tuple(asker.suffix("qa", t) for t in c.texts), trace=True) for c in cases
    ]
    return decoder, preparer.inputs(sources, meters), sources


def prefilled(decoder: Decoder, given: Settings, inputs: list[ClipInput],
              meters: list[Meter]) -> list[list[Prefilled]]:  # fmt: skip
    return prefill(decoder, given.method, inputs, meters, given.max_new_tokens)


class Dense(Meter):
    """Counts whole query x key rectangles, as torch's own counter does."""

    def _attended(self, queries: int, keys: int) -> int:
        return queries * keys


@torch.inference_mode()
def run(spec: Spec, given: Settings, cases: Sequence[Case], dtype: torch.dtype = torch.float32,
        counting: type[Meter] = Meter) -> list[RanClip]:  # fmt: skip
    """Prefill and as many tokens as asked for, without stopping early."""
    meters = [counting(checkpoint(spec).shape) for _ in cases]
    decoder, inputs, sources = prepared(spec, given, cases, meters, dtype)
    states = prefilled(decoder, given, inputs, meters)
    flat, steps = [p for some in states for p in some], []

    def head(hidden_BD: Tensor) -> Tensor:
        steps.append(decoder.head(hidden_BD))
        return steps[-1]

    heard = replace(decoder, head=head)  # type: ignore[arg-type]
    said = generate(heard, flat, [Sampling(given.max_new_tokens)] * len(flat), frozenset())
    logits_SBV, at, out = torch.stack(steps).float(), 0, []
    for one, source, meter, some in zip(inputs, sources, meters, states, strict=True):
        ran = []
        for state in some:
            ran.append(Ran(state, tuple(said[at].tokens), logits_SBV[:, at]))
            at += 1
        bill = replace(meter.bill, generate=sum(s.operations for s in said[at - len(some) : at]))
        out.append(RanClip(one, source.suffixes, bill, meter.paper_macs, tuple(ran)))
    return out
