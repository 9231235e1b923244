"""A trained model -> its folder in the package, with a card that says how it was made and what it was seen to do."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

import mlb_batch.tiny
from mlb_batch.tiny.build import save

_CARD = """---
license: apache-2.0
---

# {name}

{what}

Trained from random weights on the procedural world of this project (`mlb_batch/tiny/world.py`) and on nothing else: it
knows coloured shapes that move, stay and flash, and no more. Made by

    python -m mlb_batch.tiny.train {command} --seed {seed} --export

after {steps} steps that followed its tower's lesson. Figures on held-out seeds, which training never draws:

| what | figure |
|---|---|
{figures}
"""
_WHAT = {
    "tiny": "A video language model: the LlavaOnevision classes, a small SigLIP tower, a thin Qwen2 of 16 layers.",
    "tiny-paired": "A SigLIP pair of text and vision towers, for the likeness of a text and a frame.",
    "tiny-image": "An image language model: the LlavaNext classes, a small CLIP tower, a thin Llama of 12 layers. "
    "It has seen single and tiled images, never a video.",
}


def as_stored(model: PreTrainedModel) -> None:
    """Rounds the weights as the file will hold them, so that figures are those of the file."""
    for parameter in model.parameters():
        parameter.data = parameter.data.half().float()


def export(name: str, model: PreTrainedModel, figures: dict[str, float], command: str, seed: int, steps: int) -> Path:
    folder = Path(mlb_batch.tiny.__file__).parent / "weights" / name
    rows = "\n".join(f"| {what} | {figure:.4g} |" for what, figure in figures.items())
    card = _CARD.format(name=name, what=_WHAT[name], command=command, seed=seed, steps=steps, figures=rows)
    save(name, model, folder, card)
    return folder
