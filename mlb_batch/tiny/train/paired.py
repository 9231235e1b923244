"""The paired model's lesson: which texts belong to which frames, by SigLIP's own sigmoid loss with the true matches.

A text names a shape, as captions and questions do, and belongs to every frame that shows it; or it asks for a flash,
and belongs to every frame that shows two shapes, as only a flash makes them.

Legend: B frames, T texts, D features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import SiglipModel

from mlb_batch.tiny.architectures import PAIRED_PX, PAIRED_TEXT_TOKENS
from mlb_batch.tiny.build import make_model, make_tokenizer
from mlb_batch.tiny.train.frames import FrameBatch, make_frames
from mlb_batch.tiny.train.loop import Task
from mlb_batch.tiny.train.pixels import half, model_pixels
from mlb_batch.tiny.truth import Act, Flash
from mlb_batch.tiny.words import COLOURS, DIRECTIONS, PLACES
from mlb_batch.tiny.world import HELD_OUT_FROM, make_clip
from mlb_batch.vlm.choices import choice_text

STEPS, FRAMES = 300, 64
_NAMING = (
    "a {0}", "{0}", "Is there a {0}?", "Which direction does the {0} move?", "Where does the {0} stay?",
    "When does the {0} appear?", "What comes after the {0}?", "What comes before the {0}?", "A {0} moves {1}.",
    "A {0} stays at the {2}.",
)  # fmt: skip
_FLASHING = ("What colour is the flash?", "What shape is the flash?", "Where is the flash?", "When is the flash?",
             "How many flashes are there?", "a flash")  # fmt: skip


@dataclass(frozen=True)
class Texts:
    """Texts and whether each belongs to each frame."""

    lines: list[str]
    match_BT: Tensor


def fresh_model(seed: int, tower: dict[str, Tensor] | None = None) -> SiglipModel:
    """Untrained, or with the vision layers that the video model's tower has learned from the same frames."""
    model = make_model("tiny-paired", seed)
    assert isinstance(model, SiglipModel)
    with torch.no_grad():  # as SigLIP starts: few matches are expected, and likenesses are sharp
        model.logit_scale.fill_(math.log(10))
        model.logit_bias.fill_(-6)
    if tower:
        missing = model.vision_model.load_state_dict(tower, strict=False).missing_keys
        assert all(key.startswith("head.") for key in missing), missing
    return model


def task(model: SiglipModel, seed: int, frames: int = FRAMES) -> Task:
    tokenizer = make_tokenizer("tiny-paired")

    def scores(pixels: Tensor, lines: list[str]) -> Tensor:
        ids = tokenizer(
            lines, padding="max_length", truncation=True, max_length=PAIRED_TEXT_TOKENS, return_tensors="pt"
        ).input_ids
        return model(input_ids=ids.to(model.device), pixel_values=pixels.to(model.device)).logits_per_image

    def loss(step: int) -> Tensor:
        batch = make_frames((seed, 1, step), frames, PAIRED_PX, cells=4, least=1, most=2)
        texts = _texts(batch, np.random.default_rng((seed, 2, step)))
        with half(model):
            logits_BT = scores(model_pixels(batch.pixels_BHWC), texts.lines)
        sign_BT = texts.match_BT.to(model.device) * 2 - 1
        return -functional.logsigmoid(sign_BT * logits_BT.float()).sum(-1).mean()

    @torch.no_grad()
    def measure(step: int) -> dict[str, float]:
        return _retrieval(lambda pixels, line: scores(pixels, [line])[:, 0])

    return Task("paired", model, loss, measure, STEPS, 1.5e-3)


def _texts(batch: FrameBatch, rng: np.random.Generator) -> Texts:
    """One text a frame, true of that frame; a match wherever else it is true as well."""
    lines: list[str] = []
    match_BT = torch.zeros(len(batch.names), len(batch.names))
    for column, names in enumerate(batch.names):
        if len(names) > 1 and rng.random() < 0.2:
            line = str(rng.choice(_FLASHING))
            true_of = [len(others) > 1 for others in batch.names]
        else:
            colour, shape = names[int(rng.integers(len(names)))]
            line = str(rng.choice(_NAMING)).format(f"{colour} {shape}", rng.choice(DIRECTIONS), rng.choice(PLACES))
            true_of = [(colour, shape) in others for others in batch.names]
        if rng.random() < 0.15:
            line = choice_text(line, tuple(str(option) for option in rng.choice(COLOURS, 2, replace=False)))
        lines.append(line)
        match_BT[:, column] = torch.tensor(true_of, dtype=torch.float32)
    return Texts(lines, match_BT)


def _retrieval(score: Callable[[Tensor, str], Tensor], clips: int = 60, frames: int = 16) -> dict[str, float]:
    """How often the frame that a text scores highest, out of a held-out clip, shows what the text names."""
    hits: dict[str, list[bool]] = {"act": [], "flash": []}
    for seed in range(HELD_OUT_FROM, HELD_OUT_FROM + clips):
        clip = make_clip(seed, frames)
        pixels = model_pixels(clip.pixels_FHWC)
        asked: list[tuple[str, str, Act | Flash]] = []
        if len(clip.truth.acts) > 1:
            asked += [("act", f"When does the {act.name} appear?", act) for act in clip.truth.acts]
        if len(clip.truth.flashes) == 1:
            asked.append(("flash", "What colour is the flash?", clip.truth.flashes[0]))
        for kind, line, thing in asked:
            best = int(score(pixels, line).argmax())
            hits[kind].append(thing.start <= best < thing.end)
    return {f"best frame shows the {kind} asked for": round(sum(found) / len(found), 4) for kind, found in hits.items()}
