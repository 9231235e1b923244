"""What a clip's visual tokens should know half way up the language model, told in training only.

An answer teaches one token at a time; a clip has a truth for every token that shows a shape: what it is, whether it
is an act or a flash, the how-manieth, where it is going, and which act came before it. Linear readings of the hidden
states are held to that truth, and thrown away when training ends.

Legend: M noted tokens, N visual tokens of the batch, D hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from mlb_batch.tiny.render import Sprite
from mlb_batch.tiny.truth import Act, Flash, Truth
from mlb_batch.tiny.words import COLOURS, DIRECTIONS, PLACES, SHAPES
from mlb_batch.tiny.world import Clip

_UNSAID = -100
# What is read, and how many answers there are.
CLASSES = {
    "colour": len(COLOURS), "shape": len(SHAPES), "flash": 2, "ordinal": 4, "going": len(DIRECTIONS) + 1,
    "place": len(PLACES), "colour_before": len(COLOURS), "shape_before": len(SHAPES), "acts": 5, "flashes": 4,
}  # fmt: skip


@dataclass(frozen=True)
class Notes:
    at_M: Tensor  # which visual tokens of the batch
    labels: dict[str, Tensor]  # by reading, M of them


def notes(clips: list[Clip], tokens_a_clip: int, cells: int) -> Notes:
    """Every token in whose cell a shape's centre is, and each clip's last token, which knows the counts."""
    at: list[int] = []
    said: list[dict[str, int]] = []
    for index, clip in enumerate(clips):
        first = index * tokens_a_clip
        for thing, sprite in clip.shown:
            at.append(first + cell_of(sprite, cells))
            said.append(_said(clip.truth, thing, sprite.frame))
        at.append(first + tokens_a_clip - 1)
        said.append({"acts": len(clip.truth.acts), "flashes": len(clip.truth.flashes)})
    labels = {name: torch.tensor([one.get(name, _UNSAID) for one in said]) for name in CLASSES}
    return Notes(torch.tensor(at), labels)


def cell_of(sprite: Sprite, cells: int) -> int:
    row, column = (min(cells - 1, max(0, int(v * cells))) for v in (sprite.y, sprite.x))
    return (sprite.frame * cells + row) * cells + column


def _said(truth: Truth, thing: Act | Flash, frame: int) -> dict[str, int]:
    """What can be known at this frame from what came so far."""
    said = {"colour": COLOURS.index(thing.colour), "shape": SHAPES.index(thing.shape)}
    if frame:
        said["flash"] = int(isinstance(thing, Flash))
    if isinstance(thing, Flash):
        return said | {"ordinal": truth.flashes.index(thing), "place": PLACES.index(thing.place)}
    ordinal = truth.acts.index(thing)
    said["ordinal"] = ordinal
    if frame > thing.start:
        said["going"] = DIRECTIONS.index(thing.direction) if thing.direction else len(DIRECTIONS)
    if thing.place:
        said["place"] = PLACES.index(thing.place)
    if ordinal:
        before = truth.acts[ordinal - 1]
        said |= {"colour_before": COLOURS.index(before.colour), "shape_before": SHAPES.index(before.shape)}
    return said


class NoteHeads(nn.Module):
    """Linear readings of a visual token's hidden state."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.readings = nn.ModuleDict({name: nn.Linear(width, count) for name, count in CLASSES.items()})

    def loss(self, hidden_ND: Tensor, noted: Notes) -> Tensor:
        """Mean over the readings."""
        device = hidden_ND.device
        normal_MD = self.norm(hidden_ND[noted.at_M.to(device)])
        losses = [
            functional.cross_entropy(self.readings[name](normal_MD).float(), label_M.to(device), ignore_index=_UNSAID)
            for name, label_M in noted.labels.items()
            if bool((label_M != _UNSAID).any())
        ]
        return torch.stack(losses).mean()

    def right(self, hidden_ND: Tensor, noted: Notes) -> dict[str, float]:
        normal_MD = self.norm(hidden_ND[noted.at_M.to(hidden_ND.device)])
        out = {}
        for name, label_M in noted.labels.items():
            asked = label_M != _UNSAID
            answer_M = self.readings[name](normal_MD).argmax(-1).cpu()
            out[f"note_{name}"] = round((answer_M == label_M)[asked].float().mean().item(), 3)
        return out
