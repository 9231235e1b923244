"""The engine step by step with one method: frames to visual tokens, to caches, to text; and what each step costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlb_batch.bench.bed import Bed
from mlb_batch.cost.budget import Measure, feature_price, moved_bytes
from mlb_batch.cost.flops import Bill, price, vanilla
from mlb_batch.cost.schedule import WHOLE, ClipShape, Schedule
from mlb_batch.cost.shapes import ModelShape, PairedShape
from mlb_batch.cost.solve import Pricer, largest
from mlb_batch.errors import BudgetError
from mlb_batch.prune import Pruning, make
from mlb_batch.vlm.checkpoint import Checkpoint
from mlb_batch.vlm.decoder import Decoder
from mlb_batch.vlm.generate import Generated, Sampling, generate
from mlb_batch.vlm.inputs import ClipInput
from mlb_batch.vlm.meter import Meter
from mlb_batch.vlm.prefill import prefill
from mlb_batch.vlm.prepare import Preparer, Source
from mlb_batch.vlm.prompts import Prompter
from mlb_batch.vlm.sequence import Prefilled
from mlb_batch.vlm.values import Settings

PROMPT = "Describe the video in detail."


@dataclass(frozen=True)
class Ours:
    decoder: Decoder
    preparer: Preparer
    prompter: Prompter
    settings: Settings

    @classmethod
    def of(cls, model: Any, checkpoint: Checkpoint, settings: Settings) -> Ours:
        prompter = Prompter(checkpoint)
        preparer = Preparer.of(model, checkpoint, prompter.prefix, settings)
        return cls(preparer.decoder, preparer, prompter, settings)

    @property
    def shape(self) -> ModelShape:
        return self.decoder.shape

    def sources(self, clips: Sequence[np.ndarray], texts: Sequence[str] = (PROMPT,)) -> list[Source]:
        suffixes = tuple(self.prompter.suffix("caption", text) for text in texts)
        return [Source(str(i), pixels_FHWC, tuple(texts), suffixes) for i, pixels_FHWC in enumerate(clips)]

    def encode(self, sources: list[Source]) -> list[ClipInput]:
        return self.preparer.inputs(sources, self.meters(len(sources)))

    def prefill(self, inputs: list[ClipInput]) -> list[Prefilled]:
        """One for each prompt of each clip."""
        settings, meters = self.settings, self.meters(len(inputs))
        found = prefill(self.decoder, settings.method, inputs, meters, settings.max_new_tokens)
        return [one for some in found for one in some]

    def first_tokens(self, prefilled: list[Prefilled]) -> Tensor:
        return self.decoder.logits(torch.stack([one.last_D for one in prefilled])).argmax(dim=-1)

    def generate(self, prefilled: list[Prefilled], new_tokens: int) -> list[Generated]:
        """Every answer takes all its tokens: nothing stops one."""
        return generate(self.decoder, prefilled, [Sampling(new_tokens)] * len(prefilled), frozenset())

    def meters(self, clips: int) -> list[Meter]:
        return [Meter(self.shape) for _ in range(clips)]

    def clip_shape(self, source: Source) -> ClipShape:
        return self.preparer.clip_shape(source)

    def schedule(self, clip: ClipShape) -> Schedule:
        return self.settings.method.schedule(self.shape, clip, self.settings.keep)

    def bill(self, source: Source, new_tokens: int = 0) -> Bill:
        """What a clip costs with this method; without new tokens, up to its caches."""
        clip = self.clip_shape(source)
        schedule = self.schedule(clip)
        features = feature_price(self.preparer.pair_shape, clip, schedule)
        return price(self.shape, clip, schedule, (new_tokens,) * len(clip.suffixes), features)

    def vanilla_bill(self, source: Source) -> Bill:
        return vanilla(self.shape, self.clip_shape(source))

    def bytes_moved(self, clip: ClipShape, new_tokens: int, batch: int) -> int:
        """By the generation of all of a clip's answers, where so many sequences generate together."""
        return moved_bytes(self.shape, clip, self.schedule(clip), new_tokens, self.decoder.dtype.itemsize, batch)


@dataclass(frozen=True)
class Pair:
    """The engine unpruned and pruned, on the same weights."""

    vanilla: Ours
    pruned: Ours

    @classmethod
    def of(cls, bed: Bed) -> Pair:
        plain, method = unpruned(bed), make(bed.shape.method)
        source = plain.sources(frames(bed, 1))[0]
        keep = keep_at(plain.shape, method, plain.clip_shape(source), bed.shape.ratio)
        settings = replace(plain.settings, method=method, keep=keep)
        return cls(plain, Ours.of(bed.model, bed.checkpoint, settings))


def unpruned(bed: Bed) -> Ours:
    return Ours.of(bed.model, bed.checkpoint, Settings(make("none"), WHOLE, bed.shape.new_tokens))


def keep_at(shape: ModelShape, method: Pruning, clip: ClipShape, ratio: float, pair: PairedShape | None = None) -> int:
    """The keep whose prefill and scoring are this share of the unpruned ones."""
    pricer = Pricer(shape, method, Measure("llm"), pair)
    floor, whole = pricer.clip(clip, 0), pricer.vanilla_clip(clip)
    if floor > ratio * whole:
        raise BudgetError(
            f"--ratio: {ratio:g} is below the floor of {method.name} on this shape, {floor / whole:.4f}; give a larger "
            "--ratio, or more --frames"
        )
    return largest(lambda keep: pricer.clip(clip, keep), int(ratio * whole), floor).at


def frames(bed: Bed, clips: int) -> list[np.ndarray]:
    """Clips of random frames at the model's input size; neighbours are alike, as in a video."""
    return random_clips(clips, bed.shape.frames, bed.checkpoint.vision_size)


def random_clips(clips: int, count: int, px: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    out = []
    for _ in range(clips):
        scene = rng.integers(0, 200, (px, px, 3))
        drift = rng.integers(0, 50, (count, px, px, 3))
        out.append((scene + drift).astype(np.uint8))
    return out
