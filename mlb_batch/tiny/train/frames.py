"""First lesson of a vision tower: single frames, and which shape of which colour is centred in or near each cell.

Legend: B frames in the batch, G cells a side, D features.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from mlb_batch.tiny.render import RGB, Sprite, draw
from mlb_batch.tiny.words import COLOURS, SHAPES


@dataclass(frozen=True)
class FrameBatch:
    pixels_BHWC: NDArray[np.uint8]
    colour_BGG: Tensor  # index into COLOURS, len(COLOURS) for an empty cell
    shape_BGG: Tensor
    offset_BGG2: Tensor  # where in its cell the shape's centre is, -0.5 .. 0.5
    where_BGG2: Tensor  # where in the frame it is, -1 .. 1
    objects: list[list[Sprite]]
    names: list[list[tuple[str, str]]]

    def to(self, device: torch.device) -> FrameBatch:
        parts = ("colour_BGG", "shape_BGG", "offset_BGG2", "where_BGG2")
        return replace(self, **{part: getattr(self, part).to(device) for part in parts})


def make_frames(
    seed: tuple[int, ...], count: int, size: int, cells: int, least: int = 0, most: int = 3, reach: float = 0.5
) -> FrameBatch:
    """A shape is told to the cells whose middle is at most `reach` cells from its own: at 0.5, to the one it is in."""
    rng = np.random.default_rng(seed)
    sprites: list[Sprite] = []
    objects: list[list[Sprite]] = []
    names: list[list[tuple[str, str]]] = []
    for frame in range(count):
        if rng.random() < 0.4:
            sprites.append(_flicker(rng, frame))
        placed, called = _objects(rng, frame, int(rng.integers(least, most + 1)))
        sprites += placed
        objects.append(placed)
        names.append(called)
    background_FC = np.clip(rng.integers(10, 60, (count, 1)) + rng.integers(-10, 11, (count, 3)), 0, 255)
    pixels = draw(background_FC.astype(np.uint8), sprites, size, rng)
    return FrameBatch(vary(pixels, rng), *_labels(objects, names, cells, reach), objects, names)


def vary(pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Small changes of brightness and colour, as cameras and codecs make them."""
    gain = rng.uniform(0.92, 1.08, 3).astype(np.float32)
    shift = rng.uniform(-6, 6, 3).astype(np.float32)
    return np.clip(pixels * gain + shift, 0, 255).astype(np.uint8)


def _flicker(rng: np.random.Generator, frame: int) -> Sprite:
    grey = int(rng.integers(60, 150))
    return Sprite(frame, float(rng.uniform(0, 1)), float(rng.uniform(0, 1)), 0.08, "square", (grey, grey, grey))


def _objects(rng: np.random.Generator, frame: int, count: int) -> tuple[list[Sprite], list[tuple[str, str]]]:
    sprites: list[Sprite] = []
    names = []
    for _ in range(count):
        x, y = (float(v) for v in rng.uniform(0.12, 0.88, 2))
        if any(np.hypot(x - other.x, y - other.y) < 0.3 for other in sprites):
            continue
        colour, shape = str(rng.choice(COLOURS)), str(rng.choice(SHAPES))
        sprites.append(Sprite(frame, x, y, float(rng.uniform(0.10, 0.15)), shape, RGB[colour]))
        names.append((colour, shape))
    return sprites, names


def _labels(
    objects: list[list[Sprite]], names: list[list[tuple[str, str]]], cells: int, reach: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    colour_BGG = torch.full((len(objects), cells, cells), len(COLOURS))
    shape_BGG = torch.full((len(objects), cells, cells), len(SHAPES))
    offset_BGG2 = torch.zeros(len(objects), cells, cells, 2)
    where_BGG2 = torch.zeros(len(objects), cells, cells, 2)
    for index, (sprites, called) in enumerate(zip(objects, names, strict=True)):
        for sprite, (colour, shape) in zip(sprites, called, strict=True):
            for row, column in product(_near(sprite.y * cells, cells, reach), _near(sprite.x * cells, cells, reach)):
                colour_BGG[index, row, column] = COLOURS.index(colour)
                shape_BGG[index, row, column] = SHAPES.index(shape)
                inside = (sprite.x * cells - column - 0.5, sprite.y * cells - row - 0.5)
                offset_BGG2[index, row, column] = torch.tensor(inside)
                where_BGG2[index, row, column] = torch.tensor((sprite.x * 2 - 1, sprite.y * 2 - 1))
    return colour_BGG, shape_BGG, offset_BGG2, where_BGG2


def _near(at: float, cells: int, reach: float) -> list[int]:
    return [cell for cell in range(cells) if abs(cell + 0.5 - at) <= reach]


class FrameHeads(nn.Module):
    """Linear readings of a cell's feature; thrown away once the tower has learned."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)
        self.colour = nn.Linear(features, len(COLOURS) + 1)
        self.shape = nn.Linear(features, len(SHAPES) + 1)
        self.offset = nn.Linear(features, 2)
        self.where = nn.Linear(features, 2)

    def loss(self, cells_BGGD: Tensor, batch: FrameBatch) -> Tensor:
        normal_BGGD = self.norm(cells_BGGD)
        colour = functional.cross_entropy(self.colour(normal_BGGD).flatten(0, 2), batch.colour_BGG.flatten())
        shape = functional.cross_entropy(self.shape(normal_BGGD).flatten(0, 2), batch.shape_BGG.flatten())
        there = batch.colour_BGG < len(COLOURS)
        offset = (self.offset(normal_BGGD) - batch.offset_BGG2)[there].abs().mean() if there.any() else colour * 0
        return 4 * (colour + shape) + offset

    def loss_with_place(self, cells_BGGD: Tensor, batch: FrameBatch) -> Tensor:
        """Also the place in the frame, so that each feature says for itself where it is and motion is easy to read."""
        there = batch.colour_BGG < len(COLOURS)
        where = (self.where(self.norm(cells_BGGD)) - batch.where_BGG2)[there].abs().mean()
        return self.loss(cells_BGGD, batch) + 4 * where

    def right(self, cells_BGGD: Tensor, batch: FrameBatch) -> dict[str, float]:
        """Share of the objects whose colour and shape are read right, and the mean error of their place in cells."""
        normal_BGGD = self.norm(cells_BGGD)
        there = batch.colour_BGG < len(COLOURS)
        colour = (self.colour(normal_BGGD).argmax(-1) == batch.colour_BGG)[there].float().mean()
        shape = (self.shape(normal_BGGD).argmax(-1) == batch.shape_BGG)[there].float().mean()
        offset = (self.offset(normal_BGGD) - batch.offset_BGG2)[there].abs().mean()
        where = (self.where(normal_BGGD) - batch.where_BGG2)[there].abs().mean()
        return {
            "frame_where": where.item(),
            "frame_colour": colour.item(),
            "frame_shape": shape.item(),
            "frame_offset": offset.item(),
        }
